-- Forgets what a tenant has left besides its values, a piece at a time: who is registered with sessions and seats, then
-- timers, and last the log, which begins a new epoch.
-- KEYS 1 log, 2 meta, 3 value of the guard
-- ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 version of the guard, 4 '=' and the prefix of
--      the documented keys, or '', 5 where to go on: 'c' and a cursor among the connections, 't' and one among the
--      timers, 6 how many are looked at, 7 generation, 8 largest epoch that the node has seen
-- Answers 'guarded' if the guard has another version, 'done', or where to go on.
local call = redis.call
local log, meta, base, partition = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if call('GETRANGE', KEYS[3], 0, #ARGV[3]) ~= ARGV[3] .. '\n' then return 'guarded' end
local own = string.match(base, ':([^:]*):$') .. '/'

local phase, cursor = string.sub(ARGV[5], 1, 1), string.sub(ARGV[5], 2)
if phase == 'c' then
  -- Always on from where it was: a hash from which much was deleted keeps its size, and is empty at its beginning.
  local found = call('HSCAN', base .. 'c', cursor, 'COUNT', ARGV[6])
  local people = registry(base, partition, ARGV[4] ~= '' and string.sub(ARGV[4], 2) or nil)
  for i = 1, #found[2], 2 do
    local _, subject, session = people.find(found[2][i])
    people.depart(found[2][i])
    if subject then call('DEL', base .. 's:' .. session, base .. 'u:' .. subject) end
  end
  if found[1] ~= '0' then return 'c' .. found[1] end
  -- Some came in meanwhile.
  if call('HLEN', base .. 'c') > 0 then return 'c0' end
  cursor = '0'
end

local due_times, held_timers = partition .. 'tz', partition .. 'th'
local found = call('HSCAN', held_timers, cursor, 'MATCH', own .. '*', 'COUNT', ARGV[6])
for i = 1, #found[2], 2 do
  call('ZREM', due_times, found[2][i])
  call('HDEL', held_timers, found[2][i])
end
if found[1] ~= '0' then return 't' .. found[1] end

local dead = partition .. 'td'
for _, letter in ipairs(call('XRANGE', dead, '-', '+')) do
  local fields = letter[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'timer' and string.sub(fields[i + 1], 1, #own) == own then call('XDEL', dead, letter[1]) end
  end
end

-- The next commit counts what is kept anew. Sessions whose connections have gone before are not found any more (`f`).
local now = clock()
call('DEL', base .. 'u', base .. 'ut', log)
call('HDEL', meta, 'b', 'n', 'w', 't', 'c')
begin_epoch(log, meta, ARGV[7], ARGV[8], now)
call('HSET', meta, 'f', whole(now))
return 'done'
