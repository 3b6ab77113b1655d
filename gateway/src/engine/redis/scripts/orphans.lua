-- Fences a dead incarnation out of a partition and answers some of the connections that it left there.
-- KEYS dead of the partition, connections of the incarnation
-- ARGV 1 incarnation, 2 prefix before a tenant's name, 3 how many, 4 how long the dead are remembered (ms)
-- Answers {'tenant/connection', what it is} each; nothing once nothing is left.
local now = clock()
if redis.call('HSETNX', KEYS[1], ARGV[1], whole(now)) == 1 then
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    if now - all[i + 1] > tonumber(ARGV[4]) then redis.call('HDEL', KEYS[1], all[i]) end
  end
end
local found, names = {}, nil
repeat
  names = redis.call('SRANDMEMBER', KEYS[2], ARGV[3])
  for _, name in ipairs(names) do
    local tenant, connection = string.match(name, '^([^/]*)/(.*)$')
    local who = tenant and redis.call('HGET', ARGV[2] .. tenant .. ':c', connection)
    if who then found[#found + 1] = {name, who} else redis.call('SREM', KEYS[2], name) end
  end
until #found > 0 or #names == 0
return found
