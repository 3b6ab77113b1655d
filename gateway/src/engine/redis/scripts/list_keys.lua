-- One stretch of the index of keys; forgets those whose value has expired.
-- KEYS index   ARGV 1 prefix of the tenant's keys, 2 from, 3 to (both as ZRANGEBYLEX reads them), 4 how many
-- Answers {how many the stretch had, its last key, the keys that live ...}.
local stretch = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
local answer = {#stretch, stretch[#stretch] or ''}
for _, key in ipairs(stretch) do
  if redis.call('EXISTS', ARGV[1] .. 'k:' .. key) == 1 then
    answer[#answer + 1] = key
  else
    redis.call('ZREM', KEYS[1], key)
  end
end
return answer
