-- Applies one commit: all of it or nothing.
-- KEYS 1 log, 2 meta, 3 commit id
-- ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 shard channel,
--      4 generation, 5 encoded effects or '', 6 packed changes or '', 7 how long the commit id is
--      kept (ms), 8 entries kept, 9 age kept (ms), 10 time between checkpoints (ms)
-- Answers {'committed', position}, {'conflict', key}, {'timer-gone'} or {'not-a-counter', key}.
--
-- Keys that are not in KEYS are built from the prefixes, which carry the same hash tag.
-- Redis does not undo what a script did before an error: so all checks come first, and what
-- follows them cannot fail.

local log, meta, commit_id = KEYS[1], KEYS[2], KEYS[3]
local base, partition = ARGV[1], ARGV[2]
local generation, effects = ARGV[4], ARGV[5]

local done = redis.call('GET', commit_id)
if done then return {'committed', done} end

local now = clock()
local timers_due, timers_held = partition .. 'tz', partition .. 'th'
local reads, writes, timers, presence, session, fired = {}, {}, {}, {}, nil, nil
if ARGV[6] ~= '' then
  local changes = cmsgpack.unpack(ARGV[6])
  reads, writes, timers, presence = changes[1], changes[2], changes[3], changes[4]
  session, fired = changes[5], changes[6]
end

-- Values are stored as `<version>\n<value>`.
local function value_of(key)
  local stored = redis.call('GET', base .. 'k:' .. key)
  return stored and string.sub(stored, string.find(stored, '\n', 1, true) + 1)
end

-- Lua's numbers are exact to 15 digits; Redis adds what is longer.
local function sum_of(current, delta)
  if not string.match(current, '^-?%d+$') then return nil end
  if #current <= 15 and #delta <= 15 then
    local sum = whole(current + delta)
    return sum == '-0' and '0' or sum
  end
  local scratch = base .. 'scratch'
  redis.call('SET', scratch, current)
  local answer = redis.pcall('INCRBY', scratch, delta)
  local sum = redis.call('GET', scratch)
  redis.call('DEL', scratch)
  if type(answer) == 'table' and answer.err then return nil end
  return sum
end

-- Checks.

if fired then
  local held = redis.call('HGET', timers_held, fired[1])
  if not held then return {'timer-gone'} end
  local set, attempt = string.match(held, '^([^\n]*)\n([^\n]*)\n')
  if set .. ':' .. attempt ~= fired[2] then return {'timer-gone'} end
end

for _, read in ipairs(reads) do
  local key, version = read[1], read[2]
  local name = base .. 'k:' .. key
  if version == '' then
    if redis.call('EXISTS', name) == 1 then return {'conflict', key} end
  elseif redis.call('GETRANGE', name, 0, #version) ~= version .. '\n' then
    return {'conflict', key}
  end
end

local sums = {}
for i, write in ipairs(writes) do
  if write[1] == 'add' then
    sums[i] = sum_of(value_of(write[2]) or '0', write[3])
    if not sums[i] then return {'not-a-counter', write[2]} end
  end
end

-- Epoch and version.

local known = redis.call('HMGET', meta, 'e', 'g', 't')
local epoch, checkpointed = known[1], known[3]
if not epoch or known[2] ~= generation then epoch = begin_epoch(log, meta, generation, now) end

local version
if #writes > 0 or #timers > 0 then
  version = epoch .. '.' .. whole(redis.call('HINCRBY', meta, 'v', 1))
end

-- State.

local index, expiries = base .. 'keys', base .. 'exp'

local function forget(key)
  redis.call('DEL', base .. 'k:' .. key)
  redis.call('ZREM', index, key)
end

for i, write in ipairs(writes) do
  local kind, key, value, ttl = write[1], write[2], write[3], write[4]
  local name = base .. 'k:' .. key
  if kind == 'delete' or ttl == 0 then
    forget(key)
  else
    if kind == 'add' then
      redis.call('SET', name, version .. '\n' .. sums[i], 'KEEPTTL')
    elseif ttl < 0 then
      redis.call('SET', name, version .. '\n' .. value)
    else
      redis.call('SET', name, version .. '\n' .. value, 'PX', whole(ttl))
      redis.call('ZADD', expiries, whole(now + ttl), key)
    end
    redis.call('ZADD', index, 0, key)
  end
end

-- Redis drops expired values by itself; the index follows here, a few with each commit.
if #writes > 0 then
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', whole(now), 'LIMIT', 0, 16)) do
    redis.call('ZREM', expiries, key)
    if redis.call('EXISTS', base .. 'k:' .. key) == 0 then redis.call('ZREM', index, key) end
  end
end

-- Timers: `<set token>\n<attempt>\n<due>\n<data>`.

if fired then
  redis.call('ZREM', timers_due, fired[1])
  redis.call('HDEL', timers_held, fired[1])
end
for _, timer in ipairs(timers) do
  local member, after, data = timer[1], timer[2], timer[3]
  if after < 0 then
    redis.call('ZREM', timers_due, member)
    redis.call('HDEL', timers_held, member)
  else
    local due = whole(now + after)
    redis.call('ZADD', timers_due, due, member)
    redis.call('HSET', timers_held, member, version .. '\n0\n' .. due .. '\n' .. data)
  end
end

if session then
  if session[3] > 0 then
    redis.call('SET', base .. 's:' .. session[1], session[2], 'PX', whole(session[3]))
  else
    redis.call('DEL', base .. 's:' .. session[1])
  end
end

-- Presence: a connection's namespace and subject, its rooms, and the members of each room
-- as `<subject>\0<connection>`.

local connections = base .. 'c'

local function enter(connection, member, room)
  redis.call('ZADD', base .. 'r:' .. room, 0, member)
  redis.call('SADD', base .. 'n:' .. connection, room)
end

local function exit(connection, member, room)
  redis.call('ZREM', base .. 'r:' .. room, member)
  redis.call('SREM', base .. 'n:' .. connection, room)
end

local function member_of(connection)
  local who = redis.call('HGET', connections, connection)
  return who and string.sub(who, string.find(who, '\0', 1, true) + 1) .. '\0' .. connection
end

local function each_of_user(user_room, change, room)
  for _, member in ipairs(redis.call('ZRANGE', base .. 'r:' .. user_room, 0, -1)) do
    change(string.match(member, '([^%z]*)$'), member, room)
  end
end

local function one(connection, change, room)
  local member = member_of(connection)
  if member then change(connection, member, room) end
end

local registry = {
  arrive = function(c)
    local connection, subject, namespace = c[2], c[3], c[4]
    redis.call('HSET', connections, connection, namespace .. '\0' .. subject)
    for i = 5, #c do enter(connection, subject .. '\0' .. connection, c[i]) end
  end,
  join = function(c) one(c[2], enter, c[3]) end,
  leave = function(c) one(c[2], exit, c[3]) end,
  ['user-join'] = function(c) each_of_user(c[2], enter, c[3]) end,
  ['user-leave'] = function(c) each_of_user(c[2], exit, c[3]) end,
  gone = function(c)
    local member = member_of(c[2])
    if not member then return end
    for _, room in ipairs(redis.call('SMEMBERS', base .. 'n:' .. c[2])) do
      redis.call('ZREM', base .. 'r:' .. room, member)
    end
    redis.call('DEL', base .. 'n:' .. c[2])
    redis.call('HDEL', connections, c[2])
  end,
}
for _, change in ipairs(presence) do registry[change[1]](change) end

-- The log.

local position
if effects == '' then
  position = top_of(log) or begin_epoch(log, meta, generation, now) .. '-0'
else
  local frame = struct.pack('>BI8', 1, now) .. effects
  local function append()
    return redis.pcall('XADD', log, 'MAXLEN', '~', ARGV[8], epoch .. '-*', 'd', frame)
  end
  position = append()
  local smaller_than_top = type(position) == 'table'
  if smaller_than_top or string.sub(position, -2) == '-0' then
    -- Only part of the tenant's keys survived something: this is a new stretch of the log.
    if not smaller_than_top then redis.call('DEL', log) end
    epoch = begin_epoch(log, meta, generation, now)
    position = append()
  end
  redis.call('SPUBLISH', ARGV[3], position .. ' ' .. frame)

  -- `<ms>=<id>;` every now and then, to know later which id is how old.
  if not checkpointed or math.abs(now - checkpointed) >= tonumber(ARGV[10]) then
    local kept, oldest = {}, nil
    for at, id in string.gmatch(redis.call('HGET', meta, 'c') or '', '(%d+)=([%d-]+);') do
      if now - at >= tonumber(ARGV[9]) then oldest = id else kept[#kept + 1] = at .. '=' .. id .. ';' end
    end
    kept[#kept + 1] = whole(now) .. '=' .. position .. ';'
    redis.call('HSET', meta, 't', whole(now), 'c', table.concat(kept))
    if oldest then redis.call('XTRIM', log, 'MINID', '~', oldest) end
  end
end

redis.call('SET', commit_id, position, 'PX', ARGV[7])
return {'committed', position}
