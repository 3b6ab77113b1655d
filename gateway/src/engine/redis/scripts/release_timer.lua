-- Gives a claimed timer back, if the claim still holds it.
-- KEYS due times, held timers   ARGV 1 member, 2 token, 3 from now (ms)
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then return 0 end
local set, attempt = string.match(held, '^([^\n]*)\n([^\n]*)\n')
if set .. ':' .. attempt ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[1], whole(clock() + ARGV[3]), ARGV[1])
return 1
