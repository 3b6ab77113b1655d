-- Forgets what a tenant has left besides its values, a piece at a time: who is registered with sessions and seats, then
-- timers, and last the log, which begins a new epoch.
-- KEYS 1 log, 2 meta, 3 value of the guard
-- ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 version of the guard, 4 '=' and the prefix of
--      the documented keys, or '', 5 where to go on among the timers, 6 how many are looked at, 7 generation, 8 largest
--      epoch that the node has seen
-- Answers 'guarded' if the guard has another version, 'done', or where to go on.
local call = redis.call
local log, meta, base, partition = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if call('GETRANGE', KEYS[3], 0, #ARGV[3]) ~= ARGV[3] .. '\n' then return 'guarded' end
local own = string.match(base, ':([^:]*):$') .. '/'

-- A hash that is small is answered whole, whatever is asked for.
local there = call('HSCAN', base .. 'c', 0, 'COUNT', ARGV[6])[2]
local people = registry(base, partition, ARGV[4] ~= '' and string.sub(ARGV[4], 2) or nil)
for i = 1, math.min(#there, 2 * ARGV[6]), 2 do
  local _, subject, session = people.find(there[i])
  people.depart(there[i])
  if subject then call('DEL', base .. 's:' .. session, base .. 'u:' .. subject) end
end
if call('HLEN', base .. 'c') > 0 then return ARGV[5] end

local due_times, held_timers = partition .. 'tz', partition .. 'th'
local found = call('HSCAN', held_timers, ARGV[5], 'MATCH', own .. '*', 'COUNT', ARGV[6])
for i = 1, #found[2], 2 do
  call('ZREM', due_times, found[2][i])
  call('HDEL', held_timers, found[2][i])
end
if found[1] ~= '0' then return found[1] end

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
