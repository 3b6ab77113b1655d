-- What a tenant's plugins keep in all, for the scripts that change or tell it.
--
-- The meta hash has the totals (`b` bytes, `n` keys, `w` timers that wait), `sz` the size of each key. A value that Redis
-- has dropped counts until its key is taken out of `exp`, which commits do as they go. Keys that begin with `_` and
-- timers whose names begin with `/` are the gateway's own and do not count.

local function is_of_plugins(key)
  return string.byte(key) ~= 95
end

local function is_timer_of_plugins(member)
  return not string.find(member, '^[^/]*/[^/]*//')
end

-- Forgets at most so many values whose time is over. Answers what they were counted with: bytes, keys, and how many
-- were looked at.
local function forget_expired(base, now, limit)
  local call, expiries, bytes, keys = redis.call, base .. 'exp', 0, 0
  local expired = call('ZRANGEBYSCORE', expiries, '-inf', whole(now), 'LIMIT', 0, limit)
  for i = 1, #expired do
    local key = expired[i]
    local left = call('PTTL', base .. 'k:' .. key)
    if left >= 0 then
      call('ZADD', expiries, whole(now + left + 1), key)
    else
      call('ZREM', expiries, key)
      if left == -2 then
        call('ZREM', base .. 'keys', key)
        local size = call('HGET', base .. 'sz', key)
        if size then
          call('HDEL', base .. 'sz', key)
          bytes, keys = bytes + size, keys + 1
        end
      end
    end
  end
  return bytes, keys, #expired
end

-- Counts everything, once: where data is older than its totals.
local function count_anew(base, partition)
  local call, sizes, bytes, keys, timers = redis.call, base .. 'sz', 0, 0, 0
  call('DEL', sizes)
  for _, key in ipairs(call('ZRANGE', base .. 'keys', 0, -1)) do
    local name = base .. 'k:' .. key
    local ends = is_of_plugins(key) and string.find(call('GETRANGE', name, 0, 63), '\n', 1, true)
    if ends then
      local size = #key + call('STRLEN', name) - ends
      call('HSET', sizes, key, whole(size))
      bytes, keys = bytes + size, keys + 1
    end
  end
  local own = string.match(base, '([^:]*):$') .. '/'
  for _, member in ipairs(call('HKEYS', partition .. 'th')) do
    if string.sub(member, 1, #own) == own and is_timer_of_plugins(member) then timers = timers + 1 end
  end
  return bytes, keys, timers
end

-- The totals: bytes, keys, timers. `found` has the meta hash's `v`, `b`, `n`, `w` from index `at` on.
local function totals(base, partition, meta, found, at)
  if found[at] and not found[at + 1] then
    local bytes, keys, timers = count_anew(base, partition)
    redis.call('HSET', meta, 'b', whole(bytes), 'n', whole(keys), 'w', whole(timers))
    return bytes, keys, timers
  end
  return tonumber(found[at + 1] or 0), tonumber(found[at + 2] or 0), tonumber(found[at + 3] or 0)
end
