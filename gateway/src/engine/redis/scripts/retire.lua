-- A node that serves nobody any more: not counted from here on, its lease ends when it says.
-- KEYS nodes, stat   ARGV 1 incarnation, 2 from now (ms)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], whole(clock() + ARGV[2]), ARGV[1])
return 1
