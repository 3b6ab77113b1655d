-- Notes that artefacts are stored or needed now.
-- KEYS when artefacts were that last   ARGV 1 '1' if only of those that are known, then digests
for i = 2, #ARGV do
  if ARGV[1] == '1' then redis.call('ZADD', KEYS[1], 'XX', whole(clock()), ARGV[i])
  else redis.call('ZADD', KEYS[1], whole(clock()), ARGV[i])
  end
end
return 1
