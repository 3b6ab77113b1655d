-- What scripts share that touch the registry of who is where.
--
-- A connection is `<namespace>\0<subject>\0<session>\0<incarnation>`, a member of a room
-- `<subject>\0<connection>`; neither names nor ids contain control characters. The members of a room are in
-- order, so a user's stand together, and whether one is the first or was the last is one look.

local function is_reserved(room)
  local name = string.match(room, '^/[^#]*#(.*)$') or room
  if name == 'everyone' then return true end
  local kind = string.match(name, '^([^:]*):')
  return kind == 'user' or kind == 'connection' or kind == 'everyone'
end

local function read_connection(who)
  local namespace, subject, session, inc = string.match(who, '^([^%z]*)%z([^%z]*)%z([^%z]*)%z([^%z]*)$')
  if namespace then return namespace, subject, session, inc end
  -- As it was before nodes had incarnations.
  namespace, subject = string.match(who, '^([^%z]*)%z(.*)$')
  return namespace or '', subject or '', '', ''
end

-- The registry of the tenant whose keys start with `base`. `view`: the prefix of the documented keys, or nil.
local function registry(base, partition, view)
  local call = redis.call
  local connections, tenant = base .. 'c', string.match(base, ':([^:]*):$')
  local order, changed = {}, {}

  local function of_user(room, subject, count)
    local first, beyond = '[' .. subject .. '\0', '(' .. subject .. '\1'
    return call('ZRANGEBYLEX', base .. 'r:' .. room, first, beyond, 'LIMIT', 0, count)
  end

  -- A key of that name may be another program's and of another type: that must not fail a commit half-way.
  local function show(...)
    if view then redis.pcall(...) end
  end

  -- A user comes into a room with the first connection and goes with the last. Within one commit, coming back
  -- after going is no change.
  local function turn(room, subject, joined)
    if is_reserved(room) then return show(joined and 'SADD' or 'SREM', (view or '') .. 'presence:online', subject) end
    if string.sub(room, 1, 1) ~= '/' then
      show(joined and 'SADD' or 'SREM', (view or '') .. 'room:' .. room .. ':users', subject)
    end
    local key = room .. '\0' .. subject
    if changed[key] == nil then order[#order + 1] = key end
    changed[key] = not changed[key] and {room, subject, joined and 1 or 0}
  end

  -- Does anybody want to know whether a user is there? Of the gateway's own rooms only the view does, of one.
  local function is_watched(room, subject)
    if is_reserved(room) then return view and room == 'user:' .. subject end
    return true
  end

  local self = {}

  function self.enter(connection, subject, room)
    if call('ZADD', base .. 'r:' .. room, 0, subject .. '\0' .. connection) == 0 then return end
    call('SADD', base .. 'n:' .. connection, room)
    if is_watched(room, subject) and #of_user(room, subject, 2) == 1 then turn(room, subject, true) end
  end

  function self.exit(connection, subject, room)
    if call('ZREM', base .. 'r:' .. room, subject .. '\0' .. connection) == 0 then return end
    call('SREM', base .. 'n:' .. connection, room)
    if is_watched(room, subject) and #of_user(room, subject, 1) == 0 then turn(room, subject, false) end
  end

  -- What a connection is, if it is there.
  function self.find(connection)
    local who = call('HGET', connections, connection)
    if who then return read_connection(who) end
  end

  function self.depart(connection)
    local namespace, subject, _, inc = self.find(connection)
    if not namespace then return end
    for _, room in ipairs(call('SMEMBERS', base .. 'n:' .. connection)) do self.exit(connection, subject, room) end
    call('DEL', base .. 'n:' .. connection)
    call('HDEL', connections, connection)
    call('SREM', partition .. 'i:' .. inc, tenant .. '/' .. connection)
    if view and namespace == '/' then
      local socket = view .. 'user:' .. subject .. ':socket'
      if redis.pcall('GET', socket) == connection then
        local other = of_user('user:' .. subject, subject, 1)[1]
        if other then show('SET', socket, string.match(other, '[^%z]*$')) else show('DEL', socket) end
      end
    end
  end

  -- One that is there already keeps its rooms.
  function self.arrive(connection, subject, namespace, session, inc)
    local _, known, known_session, known_inc = self.find(connection)
    if known and known ~= subject then self.depart(connection) end
    if known and known_inc ~= inc then call('SREM', partition .. 'i:' .. known_inc, tenant .. '/' .. connection) end
    if session == '' and known == subject then session = known_session end
    call('HSET', connections, connection, table.concat({namespace, subject, session, inc}, '\0'))
    call('SADD', partition .. 'i:' .. inc, tenant .. '/' .. connection)
    if namespace == '/' then show('SET', (view or '') .. 'user:' .. subject .. ':socket', connection) end
  end

  -- Connections of a user by the room that all of them are in.
  function self.each_of(user_room)
    return call('ZRANGE', base .. 'r:' .. user_room, 0, -1)
  end

  -- {room, subject, 1 for joined} of every user that came or went, in order.
  function self.changes()
    local all = {}
    for _, key in ipairs(order) do
      if changed[key] then all[#all + 1] = changed[key] end
    end
    return all
  end

  return self
end
