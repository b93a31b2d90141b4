-- Announces an instance of the fleet, and counts the live ones, on the server's clock.
-- KEYS[1]: the set of the instances. ARGV: 1 the instance, 2 the length of its lease (ms).
-- Returns: 1 the number of live instances.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { redis.call('ZCARD', KEYS[1]) }
