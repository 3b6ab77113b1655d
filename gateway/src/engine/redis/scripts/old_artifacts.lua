-- Artefacts that were neither stored nor needed for some time, the longest first.
-- KEYS when artefacts were that last   ARGV 1 for how long (ms), 2 how many at most
-- Answers each with when that was.
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(clock() - ARGV[1]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
