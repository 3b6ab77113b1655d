-- Applies one commit: all of it or nothing.
-- KEYS 1 log, 2 meta, 3 commit id
-- ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 shard channel,
--      4 generation, 5 encoded effects or '', 6 packed changes or '', 7 how long the commit id is
--      kept (ms), 8 entries kept, 9 age kept (ms), 10 time between checkpoints (ms), 11 largest epoch that the
--      node has seen, then the values that the changes name by number
-- Answers {'committed', position}, {'conflict', key}, {'timer-gone'}, {'not-a-counter', key}, {'fenced'} when the
-- node's incarnation is dead, {'over-quota', kind, value, limit} when the tenant's plugins would keep more than they
-- may, {'unleased'} when this Redis does not know it, or {'absent'} when a connection is not
-- there that must be: the one that is asked for, or the one whose session record is to be written.
--
-- Keys that are not in KEYS are built from the prefixes, which carry the same hash tag.
-- Redis does not undo what a script did before an error: so all checks come first, and what
-- follows them cannot fail. A commit that only publishes passes by everything under `changes`.

local log, meta, commit_id = KEYS[1], KEYS[2], KEYS[3]
local base, effects = ARGV[1], ARGV[5]
local call = redis.call

local done = call('GET', commit_id)
if done then return {'committed', done} end

local now = clock()
local changes = ARGV[6] ~= '' and cmsgpack.unpack(ARGV[6])
local value_name, sums = base .. 'k:', {}
-- Does it change what the tenant keeps? Others neither read nor write the totals.
local keeps = changes and (#changes[2] > 0 or #changes[3] > 0 or changes[6])
local known
if keeps then known = call('HMGET', meta, 'e', 'g', 't', 'v', 'b', 'n', 'w')
else known = call('HMGET', meta, 'e', 'g', 't')
end
-- Totals as they are, and the sizes that keys will have: names and sizes in turn, and the names of those that go.
local bytes, keys, waiting
local sized, unsized = {}, {}
-- Who came into which rooms and who went.
local turns

-- Checks.

if changes then
  local reads, writes, fired = changes[1], changes[2], changes[6]

  -- A node that was counted as gone registers nobody: what it had is being taken out. One without a lease does not
  -- either: if it died now, nobody would know that it was there.
  local session, arrives = changes[5], false
  for i = 1, #changes[4] do
    if changes[4][i][1] == 'arrive' then
      if call('HEXISTS', ARGV[2] .. 'dead', changes[8]) == 1 then return {'fenced'} end
      if changes[10] and not call('ZSCORE', changes[10], changes[8]) then return {'unleased'} end
      if session and changes[4][i][2] == session[4] then arrives = true end
    end
  end
  if changes[7] and call('HEXISTS', base .. 'c', changes[7]) == 0 then return {'absent'} end

  -- A connection that others took out has no say in the session any more. One that a loss took from the registry
  -- has to be there again first: a join would be acknowledged, and not be in the record.
  if session and not arrives and call('HEXISTS', base .. 'c', session[4]) == 0 then return {'absent'} end

  if fired then
    local held = call('HGET', ARGV[2] .. 'th', fired[1])
    if not held or string.match(held, '^[^\n]*') ~= fired[2] then return {'timer-gone'} end
  end

  -- Values are stored as `<version>\n<value>`.
  for i = 1, #reads do
    local key, version = reads[i][1], reads[i][2]
    if version == '' then
      if call('EXISTS', value_name .. key) == 1 then return {'conflict', key} end
    elseif call('GETRANGE', value_name .. key, 0, #version) ~= version .. '\n' then
      return {'conflict', key}
    end
  end

  for i = 1, #writes do
    if writes[i][1] == 'add' then
      local key, delta = writes[i][2], ARGV[11 + writes[i][3]]
      local stored = call('GET', value_name .. key)
      local current = stored and string.sub(stored, string.find(stored, '\n', 1, true) + 1) or '0'
      if not string.match(current, '^-?%d+$') then return {'not-a-counter', key} end
      if #current <= 15 and #delta <= 15 then
        sums[i] = whole(current + delta)
        if sums[i] == '-0' then sums[i] = '0' end
      else
        -- Lua's numbers are exact to 15 digits; Redis adds what is longer.
        local scratch = base .. 'scratch'
        call('SET', scratch, current)
        local answer = redis.pcall('INCRBY', scratch, delta)
        sums[i] = call('GET', scratch)
        call('DEL', scratch)
        if type(answer) == 'table' and answer.err then return {'not-a-counter', key} end
      end
    end
  end

  if keeps then
    bytes, keys, waiting = totals(base, ARGV[2], meta, known, 4)
    local most, names, sizes = changes[11], {}, {}
    for i = 1, #writes do
      local kind, key, ttl = writes[i][1], writes[i][2], writes[i][4]
      if is_of_plugins(key) then
        names[#names + 1] = key
        if kind == 'delete' or ttl == 0 then
          sizes[#names], unsized[#unsized + 1] = false, key
        else
          local size = #key + #(kind == 'add' and sums[i] or ARGV[11 + writes[i][3]])
          sizes[#names] = size
          sized[#sized + 1], sized[#sized + 2] = key, whole(size)
        end
      end
    end

    -- How bytes and keys grow.
    local function growth()
      local more_bytes, more_keys = 0, 0
      if #names > 0 then
        local old = call('HMGET', base .. 'sz', unpack(names))
        for i = 1, #names do
          more_bytes = more_bytes + (sizes[i] or 0) - (old[i] or 0)
          more_keys = more_keys + (sizes[i] and 1 or 0) - (old[i] and 1 or 0)
        end
      end
      return more_bytes, more_keys
    end

    local function beyond(more_bytes, more_keys)
      if more_bytes > 0 and bytes + more_bytes > most[1] then return 'state_bytes', bytes + more_bytes, most[1] end
      if more_keys > 0 and keys + more_keys > most[2] then return 'state_keys', keys + more_keys, most[2] end
    end

    local more_bytes, more_keys = growth()
    if most and beyond(more_bytes, more_keys) then
      -- What has expired must not stand in the way of what is new.
      local bytes_gone, keys_gone = forget_expired(base, now, 1000)
      if keys_gone > 0 then
        bytes, keys = math.max(bytes - bytes_gone, 0), math.max(keys - keys_gone, 0)
        call('HSET', meta, 'b', whole(bytes), 'n', whole(keys))
        more_bytes, more_keys = growth()
      end
      local kind, value, limit = beyond(more_bytes, more_keys)
      if kind then return {'over-quota', kind, whole(value), whole(limit)} end
    end
    bytes, keys = math.max(bytes + more_bytes, 0), math.max(keys + more_keys, 0)

    -- Timers: looked at one by one only where it may matter.
    if most and waiting + #changes[3] > most[3] then
      local held, more = ARGV[2] .. 'th', 0
      if fired and is_timer_of_plugins(fired[1]) then more = -1 end
      for i = 1, #changes[3] do
        local member, after = changes[3][i][1], changes[3][i][2]
        if is_timer_of_plugins(member) then
          local there = not (fired and fired[1] == member) and call('HEXISTS', held, member) == 1
          if after >= 0 and not there then more = more + 1 elseif after < 0 and there then more = more - 1 end
        end
      end
      if more > 0 and waiting + more > most[3] then
        return {'over-quota', 'timers', whole(waiting + more), whole(most[3])}
      end
    end
  end
end

local epoch, checkpointed = known[1], known[3]
if not epoch or known[2] ~= ARGV[4] then epoch = begin_epoch(log, meta, ARGV[4], ARGV[11], now) end

if changes then
  local writes, timers, presence, session, fired = changes[2], changes[3], changes[4], changes[5], changes[6]
  local version
  local number = keeps and tonumber(known[4] or 0)
  if #writes > 0 or #timers > 0 then
    number = number + 1
    version = epoch .. '.' .. whole(number)
  end

  -- State.

  if #writes > 0 then
    local index, expiries = base .. 'keys', base .. 'exp'
    for i = 1, #writes do
      local kind, key, value, ttl = writes[i][1], writes[i][2], ARGV[11 + writes[i][3]], writes[i][4]
      if kind == 'delete' or ttl == 0 then
        call('DEL', value_name .. key)
        call('ZREM', index, key)
      else
        if kind == 'add' then
          call('SET', value_name .. key, version .. '\n' .. sums[i], 'KEEPTTL')
        elseif ttl < 0 then
          call('SET', value_name .. key, version .. '\n' .. value)
        else
          call('SET', value_name .. key, version .. '\n' .. value, 'PX', whole(ttl))
          call('ZADD', expiries, whole(now + ttl), key)
        end
        call('ZADD', index, 0, key)
      end
    end
    -- In pieces: Lua has room for some 8,000 arguments.
    for i = 1, #sized, 2000 do call('HSET', base .. 'sz', unpack(sized, i, math.min(i + 1999, #sized))) end
    if #unsized > 0 then call('HDEL', base .. 'sz', unpack(unsized)) end
    -- Redis drops expired values by itself; index and totals follow here, more with each commit than it can add.
    local bytes_gone, keys_gone = forget_expired(base, now, math.max(16, 2 * #writes))
    bytes, keys = math.max(bytes - bytes_gone, 0), math.max(keys - keys_gone, 0)
  end

  -- Timers: `<set token>\n<attempt>\n<due>\n<data>`.

  local due_times, held_timers = ARGV[2] .. 'tz', ARGV[2] .. 'th'
  -- Answers 1 where a timer that counts is there now and was not, or the other way round.
  local function counts(member, changed)
    return changed == 1 and is_timer_of_plugins(member) and 1 or 0
  end
  if fired then
    call('ZREM', due_times, fired[1])
    waiting = waiting - counts(fired[1], call('HDEL', held_timers, fired[1]))
  end
  for i = 1, #timers do
    local member, after, data = timers[i][1], timers[i][2], timers[i][3]
    if after < 0 then
      call('ZREM', due_times, member)
      waiting = waiting - counts(member, call('HDEL', held_timers, member))
    else
      local due = whole(now + after)
      call('ZADD', due_times, due, member)
      local set = call('HSET', held_timers, member, version .. '\n0\n' .. due .. '\n' .. data)
      waiting = waiting + counts(member, set)
    end
  end
  if keeps then
    call('HSET', meta, 'v', whole(number), 'b', whole(bytes), 'n', whole(keys), 'w', whole(math.max(waiting, 0)))
  end

  -- Presence.

  if #presence > 0 then
    local people = registry(base, ARGV[2], changes[9])

    local function one(connection, change, room)
      local namespace, subject = people.find(connection)
      if namespace then change(connection, subject, room) end
    end

    local function each_of_user(user_room, change, room)
      for _, member in ipairs(people.each_of(user_room)) do
        local subject, connection = string.match(member, '^(.*)%z([^%z]*)$')
        change(connection, subject, room)
      end
    end

    for i = 1, #presence do
      local change = presence[i]
      local kind, who = change[1], change[2]
      if kind == 'arrive' then
        people.arrive(who, change[3], change[4], change[5], changes[8])
        for k = 6, #change do people.enter(who, change[3], change[k]) end
      elseif kind == 'join' then one(who, people.enter, change[3])
      elseif kind == 'leave' then one(who, people.exit, change[3])
      elseif kind == 'user-join' then each_of_user(who, people.enter, change[3])
      elseif kind == 'user-leave' then each_of_user(who, people.exit, change[3])
      elseif kind == 'gone' then people.depart(who)
      end
    end
    turns = people.changes()
  end

  if session then
    if session[3] > 0 then
      call('SET', base .. 's:' .. session[1], ARGV[11 + session[2]], 'PX', whole(session[3]))
    else
      call('DEL', base .. 's:' .. session[1])
    end
  end
end

-- The log.

local position
if effects == '' then
  position = top_of(log) or begin_epoch(log, meta, ARGV[4], ARGV[11], now) .. '-0'
else
  -- Format 2 has who came and went between header and effects; most entries have nobody.
  local frame
  if turns and #turns > 0 then frame = struct.pack('>BI8', 2, now) .. cmsgpack.pack(turns) .. effects
  else frame = struct.pack('>BI8', 1, now) .. effects
  end
  position = redis.pcall('XADD', log, 'MAXLEN', '~', ARGV[8], epoch .. '-*', 'd', frame)
  local beyond = type(position) == 'table'
  if beyond or string.sub(position, -2) == '-0' then
    -- Only part of the tenant's keys survived something: this is a new stretch of the log.
    if not beyond then call('DEL', log) end
    epoch = begin_epoch(log, meta, ARGV[4], ARGV[11], now)
    position = call('XADD', log, epoch .. '-*', 'd', frame)
  end
  call('SPUBLISH', ARGV[3], position .. ' ' .. frame)
  if changes and #changes[4] > 0 then call('HSET', meta, 'm', position) end

  -- `<ms>=<id>;` every now and then, to know later which id is how old.
  if not checkpointed or math.abs(now - checkpointed) >= tonumber(ARGV[10]) then
    local kept, oldest = {}, nil
    for at, id in string.gmatch(call('HGET', meta, 'c') or '', '(%d+)=([%d-]+);') do
      if now - at >= tonumber(ARGV[9]) then oldest = id else kept[#kept + 1] = at .. '=' .. id .. ';' end
    end
    kept[#kept + 1] = whole(now) .. '=' .. position .. ';'
    call('HSET', meta, 't', whole(now), 'c', table.concat(kept))
    if oldest then call('XTRIM', log, 'MINID', '~', oldest) end
  end
end

call('SET', commit_id, position, 'PX', ARGV[7])
return {'committed', position}
