-- A node says that it is there, and hears who else is.
-- KEYS nodes, stat, dead, unfinished   ARGV 1 incarnation, 2 lease (ms), 3 what it says of itself
-- Answers {'fenced'}, or {'ok', {incarnation, ms left, what it said ...} of the others, the dead whose
-- connections are not all taken out}.
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return {'fenced'} end
local now = clock()
redis.call('ZADD', KEYS[1], whole(now + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
local others, all = {}, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  if all[i] ~= ARGV[1] then
    others[#others + 1] = {all[i], whole(all[i + 1] - now), redis.call('HGET', KEYS[2], all[i]) or ''}
  end
end
return {'ok', others, redis.call('SRANDMEMBER', KEYS[4], 16)}
