-- Tells what a tenant's plugins keep, and forgets values whose time is over.
-- KEYS meta   ARGV 1 prefix of the tenant's keys, 2 prefix of the partition's keys, 3 values forgotten at most
-- Answers {bytes, keys, timers}.
local meta = KEYS[1]
local known = redis.call('HMGET', meta, 'v', 'b', 'n', 'w')
local bytes, keys, timers = totals(ARGV[1], ARGV[2], meta, known, 1)
local bytes_gone, keys_gone = forget_expired(ARGV[1], clock(), ARGV[3])
bytes, keys = math.max(bytes - bytes_gone, 0), math.max(keys - keys_gone, 0)
if keys_gone > 0 then redis.call('HSET', meta, 'b', whole(bytes), 'n', whole(keys)) end
return {whole(bytes), whole(keys), whole(timers)}
