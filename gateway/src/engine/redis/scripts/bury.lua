-- Moves an incarnation to the dead, for good: if its lease is over, or has been ended.
-- KEYS nodes, stat, dead, unfinished   ARGV 1 incarnation, 2 how long the dead are remembered (ms)
-- Answers 1 if this call did it.
local now = clock()
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) > now then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], whole(now), ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now - ARGV[2]))
return 1
