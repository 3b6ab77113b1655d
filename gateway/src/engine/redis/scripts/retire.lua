-- A node that serves nobody any more: not counted from here on, its lease ends when the first places do.
-- KEYS nodes, stat, kept   ARGV 1 incarnation, then tenant and for how long its connections keep their places from now
-- (ms), in turn
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
local now, first, until_when = clock(), nil, {}
for i = 2, #ARGV, 2 do
  local ends = now + ARGV[i + 1]
  first = math.min(first or ends, ends)
  until_when[#until_when + 1] = ARGV[i] .. '=' .. whole(ends)
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], whole(first or now), ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], table.concat(until_when, ';'))
return 1
