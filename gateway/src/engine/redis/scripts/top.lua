-- The top of a log; begins the log of a tenant that has none.
-- KEYS log meta   ARGV 1 generation, 2 largest epoch that the node has seen
return top_of(KEYS[1]) or begin_epoch(KEYS[1], KEYS[2], ARGV[1], ARGV[2], clock()) .. '-0'
