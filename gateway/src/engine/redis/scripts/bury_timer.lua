-- Moves a timer that is given up to the dead letters of its partition, which keep the latest.
-- KEYS due times, held timers, dead letters, meta of its tenant   ARGV 1 member, 2 token, 3 why, 4 how many are kept
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held or string.match(held, '^[^\n]*') ~= ARGV[2] then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
-- Where nothing is counted yet, the next commit counts what is left.
local waiting = is_timer_of_plugins(ARGV[1]) and redis.call('HGET', KEYS[4], 'w')
if waiting then redis.call('HSET', KEYS[4], 'w', whole(math.max(waiting - 1, 0))) end
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[4], '*', 'timer', ARGV[1], 'held', held, 'why', ARGV[3])
return 1
