-- Puts the registry right with what a node knows of its own connections, without a trace in the log.
-- KEYS log, meta   ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 incarnation, 4 position up
-- to which the node knows the log, 5 packed {{{connection, subject, namespace, session, room ...} ...}, {gone ...},
-- view, key of the leases}
-- Answers 'fenced', 'unleased', 'ok', or 'inexact' if memberships have changed since that position.
if redis.call('HEXISTS', ARGV[2] .. 'dead', ARGV[3]) == 1 then return 'fenced' end
local given = cmsgpack.unpack(ARGV[5])
if given[4] and not redis.call('ZSCORE', given[4], ARGV[3]) then return 'unleased' end
local people = registry(ARGV[1], ARGV[2], given[3])
for _, connection in ipairs(given[2]) do
  local namespace, _, _, inc = people.find(connection)
  if namespace and inc == ARGV[3] then people.depart(connection) end
end

-- What was committed since may be a join that the node does not know of yet, or a leave: only where memberships have
-- not changed is it known what is too much, and is it certain that nobody is put back who has left.
local function is_known(position)
  local epoch, seq = string.match(position, '^(%d+)%-(%d+)$')
  local known_epoch, known_seq = string.match(ARGV[4], '^(%d+)%-(%d+)$')
  epoch, known_epoch = tonumber(epoch), tonumber(known_epoch)
  return epoch < known_epoch or epoch == known_epoch and tonumber(seq) <= tonumber(known_seq)
end
local moved = redis.call('HGET', KEYS[2], 'm') or top_of(KEYS[1])
local exact = moved and is_known(moved)

for _, one in ipairs(given[1]) do
  local connection, subject = one[1], one[2]
  people.arrive(connection, subject, one[3], one[4], ARGV[3])
  local wanted = {}
  for i = 5, #one do
    wanted[one[i]] = true
    people.enter(connection, subject, one[i])
  end
  if exact then
    for _, room in ipairs(redis.call('SMEMBERS', ARGV[1] .. 'n:' .. connection)) do
      if not wanted[room] then people.exit(connection, subject, room) end
    end
  end
end
return exact and 'ok' or 'inexact'
