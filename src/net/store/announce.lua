-- Announces a process of the fleet, and counts the live ones, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements, 3 the state of the fleet.
-- ARGV: 1 the process, 2 the length of its lease (ms), 3 its announcement, 4 the length of the observer's lease (ms), or 0:
-- the process shall not observe.
-- Returns: 1 the number of live processes, 2 the time of the server (µs), 3 whether this process observes the fleet (1), 4 the
-- version of the assignments of ranges.
local process, observed = ARGV[1], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))) do
  redis.call('HDEL', KEYS[2], ended)
  redis.call('ZREM', KEYS[1], ended)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), process)
redis.call('HSET', KEYS[2], process, ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local state = redis.call('HMGET', KEYS[3], 'observer', 'observer_until')
local is_observer = (state[1] == process or (tonumber(state[2] or 0) or 0) <= now) and observed > 0
if is_observer then
  redis.call('HSET', KEYS[3], 'observer', process, 'observer_until', string.format('%.0f', now + observed))
elseif state[1] == process then
  redis.call('HDEL', KEYS[3], 'observer', 'observer_until')
end
local assignments = redis.call('HGET', KEYS[3], 'assignments_version') or 0
return { redis.call('ZCARD', KEYS[1]), time[1] * 1000000 + time[2], is_observer and 1 or 0, tonumber(assignments) or 0 }
