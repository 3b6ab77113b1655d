-- What scripts share that touch a tenant's log: a stream with ids `<epoch>-<seq>`.
--
-- Each epoch begins with a marker at seq 0, so `XADD <epoch>-*` gives 1 to the first entry,
-- a position can be resumed from exactly when its entry is there, and seq 0 from XADD says
-- that the stream vanished.

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function top_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  return last and last[1]
end

-- A new epoch is larger than any that this log has had and than any that the calling node has seen: the
-- clock may have gone back, and the server may have forgotten everything.
local function begin_epoch(log, meta, generation, seen, now)
  local epoch = math.max(now, seen + 1)
  local old = redis.call('HGET', meta, 'e')
  if old then epoch = math.max(epoch, old + 1) end
  local top = top_of(log)
  if top then epoch = math.max(epoch, string.match(top, '^%d+') + 1) end
  epoch = whole(epoch)
  -- `m`: where memberships changed last.
  redis.call('HSET', meta, 'e', epoch, 'g', generation, 'm', epoch .. '-0')
  redis.call('XADD', log, epoch .. '-0', 'e', '')
  return epoch
end
