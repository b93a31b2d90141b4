-- Forgets a lost instance of the fleet.
-- KEYS: 1 the processes, which this script does not use, 2 the lost instances by the end of the lease of their last process (ms),
-- 3 the announcements of these processes. ARGV[1]: the instance. Returns: 1 if it was lost.
redis.call('HDEL', KEYS[3], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
