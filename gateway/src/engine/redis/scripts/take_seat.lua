-- Takes a seat: one client among its user's and its tenant's, on whatever nodes.
-- KEYS seats of the user, seats of the tenant, dead of the partition, connections of the tenant, when nodes said last
-- which seats they have
-- ARGV 1 incarnation, 2 connection, 3 most of a user, 4 most of the tenant, 5 how long seats are remembered (ms),
--      6 connection whose seat is given back with that, or ''
-- Answers how many seats of the tenant are taken with that, 'user-full', 'tenant-full', or 'fenced' when the incarnation is dead.
--
-- A seat is `<incarnation>\0<connection>`, so that a node's stand together and those of a dead one go at once.
local call = redis.call
local user, tenant, dead, said = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local now = clock()
if call('HEXISTS', dead, ARGV[1]) == 1 then return 'fenced' end

local function taken()
  local seat = ARGV[1] .. '\0' .. ARGV[2]
  for _, seats in ipairs({user, tenant}) do
    call('ZADD', seats, 0, seat)
    call('PEXPIRE', seats, ARGV[5])
  end
  call('ZADD', said, whole(now), ARGV[1])
  call('PEXPIRE', said, ARGV[5])
  return call('ZCARD', tenant)
end

-- The dead are not remembered for ever: a node that has not spoken for long is as good as one.
local function is_dead(inc)
  if call('HEXISTS', dead, inc) == 1 then return true end
  local at = call('ZSCORE', said, inc)
  return not at or now - at > tonumber(ARGV[5])
end

-- Those of the dead are looked for only where there are too many: in steps from node to node, not from seat to seat.
local function is_full(seats, most)
  if call('ZCARD', seats) < most then return false end
  local from = '-'
  while true do
    local first = call('ZRANGEBYLEX', seats, from, '+', 'LIMIT', 0, 1)[1]
    if not first then return call('ZCARD', seats) >= most end
    local inc = string.match(first, '^[^%z]*')
    from = '(' .. inc .. '\1'
    if is_dead(inc) then call('ZREMRANGEBYLEX', seats, '[' .. inc .. '\0', from) end
  end
end

if call('ZSCORE', user, ARGV[1] .. '\0' .. ARGV[2]) then return taken() end

-- The registry knows which node has the earlier connection.
local earlier
local who = ARGV[6] ~= '' and call('HGET', KEYS[4], ARGV[6])
if who then
  local _, _, _, inc = read_connection(who)
  earlier = inc .. '\0' .. ARGV[6]
  if call('ZREM', user, earlier) == 0 then earlier = nil else call('ZREM', tenant, earlier) end
end

local full = is_full(user, tonumber(ARGV[3])) and 'user-full' or is_full(tenant, tonumber(ARGV[4])) and 'tenant-full'
if not full then return taken() end
if earlier then
  call('ZADD', user, 0, earlier)
  call('ZADD', tenant, 0, earlier)
end
return full
