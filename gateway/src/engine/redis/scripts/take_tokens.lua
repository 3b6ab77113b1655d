-- Takes tokens out of a bucket that holds one minute's worth and is refilled evenly.
-- KEYS the bucket: `<tokens> <when that was so (ms)>`; none is a full one   ARGV 1 tokens a minute, 2 wanted
-- Answers {granted, 0}, or {0, how long until there is one (ms)}.
local now, rate = clock(), tonumber(ARGV[1])
local stored = redis.call('GET', KEYS[1])
local tokens = rate
if stored then
  local left, at = string.match(stored, '^(%S+) (%S+)$')
  tokens = math.min(rate, left + math.max(0, now - at) * rate / 60000)
end
local granted = math.min(tonumber(ARGV[2]), math.floor(tokens))
if granted < 1 then return {0, math.max(1, math.ceil((1 - tokens) * 60000 / rate))} end
redis.call('SET', KEYS[1], string.format('%.6f %.0f', tokens - granted, now), 'PX', 60000)
return {granted, 0}
