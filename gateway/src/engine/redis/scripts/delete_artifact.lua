-- Deletes an artefact that was neither stored nor needed since it was found old.
-- KEYS artefact, when artefacts were that last   ARGV 1 digest, 2 when it was (ms)
-- Answers 0 if it was, or is not known.
local last = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not last or tonumber(last) ~= tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
