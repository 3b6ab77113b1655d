-- Gives a claimed timer back, if no later claim holds it.
-- KEYS due times, held timers   ARGV 1 member, 2 token, 3 attempt, 4 from now (ms)
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then return 0 end
local set, attempt = string.match(held, '^([^\n]*)\n([^\n]*)\n')
if set ~= ARGV[2] or attempt ~= ARGV[3] then return 0 end
redis.call('ZADD', KEYS[1], whole(clock() + ARGV[4]), ARGV[1])
return 1
