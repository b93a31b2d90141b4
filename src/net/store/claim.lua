-- Claims a name for one call. The client library may repeat a call, and the second attempt has the same result.
-- KEYS[1]: the name. ARGV: 1 the call, to which no other call is equal, 2 the length of the claim (ms).
-- Returns: whether the name was free, or is claimed for this call (1).
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.pcall('GETRANGE', KEYS[1], 0, #ARGV[1]) == ARGV[1] and 1 or 0
