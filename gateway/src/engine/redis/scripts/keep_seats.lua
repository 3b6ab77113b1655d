-- A node says which seats it has, and gives others of its own back.
-- KEYS seats of the tenant, dead of the partition, when nodes said last which seats they have
-- ARGV 1 prefix of the tenant's keys, 2 incarnation, 3 how long seats are remembered (ms), 4 packed
-- {{subject, connection} ...} twice: that it has, that it gives back
-- Answers how many seats of the tenant are taken then, or 'fenced' when the incarnation is dead.
local call = redis.call
if call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 'fenced' end
local given = cmsgpack.unpack(ARGV[4])
for _, one in ipairs(given[1]) do
  local user, seat = ARGV[1] .. 'u:' .. one[1], ARGV[2] .. '\0' .. one[2]
  call('ZADD', user, 0, seat)
  call('PEXPIRE', user, ARGV[3])
  call('ZADD', KEYS[1], 0, seat)
end
if #given[1] > 0 then
  call('PEXPIRE', KEYS[1], ARGV[3])
  call('ZADD', KEYS[3], whole(clock()), ARGV[2])
  call('PEXPIRE', KEYS[3], ARGV[3])
end
for _, one in ipairs(given[2]) do
  local seat = ARGV[2] .. '\0' .. one[2]
  call('ZREM', ARGV[1] .. 'u:' .. one[1], seat)
  call('ZREM', KEYS[1], seat)
end
return call('ZCARD', KEYS[1])
