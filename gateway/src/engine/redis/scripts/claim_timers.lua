-- Leases the timers of a partition that are due, earliest first.
-- KEYS due times, held timers   ARGV 1 how many, 2 lease (ms)
-- Answers {member, token, attempt, due, data} each. The token is the one of the setting, not of the claim: a
-- claimer that was slow may still settle the timer, as long as nobody else has.
local now = clock()
local claimed = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(now), 'LIMIT', 0, ARGV[1])) do
  local held = redis.call('HGET', KEYS[2], member)
  local set, attempt, due, data
  if held then set, attempt, due, data = string.match(held, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$') end
  if not set then
    redis.call('ZREM', KEYS[1], member)
  else
    attempt = whole(attempt + 1)
    redis.call('ZADD', KEYS[1], whole(now + ARGV[2]), member)
    redis.call('HSET', KEYS[2], member, set .. '\n' .. attempt .. '\n' .. due .. '\n' .. data)
    claimed[#claimed + 1] = {member, set, attempt, due, data}
  end
end
return claimed
