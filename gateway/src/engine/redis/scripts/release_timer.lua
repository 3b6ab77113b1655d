-- Gives a claimed timer back, if no later claim holds it.
-- KEYS due times, held timers   ARGV 1 member, 2 token, 3 attempt, 4 from now (ms), 5 '1' if the attempt counts
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then return 0 end
local set, attempt, rest = string.match(held, '^([^\n]*)\n([^\n]*)\n(.*)$')
if set ~= ARGV[2] or attempt ~= ARGV[3] then return 0 end
if ARGV[5] ~= '1' then redis.call('HSET', KEYS[2], ARGV[1], set .. '\n' .. whole(attempt - 1) .. '\n' .. rest) end
redis.call('ZADD', KEYS[1], whole(clock() + ARGV[4]), ARGV[1])
return 1
