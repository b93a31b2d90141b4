-- Announces a process of the fleet, moves those that have ended to the lost instances, and counts the live ones, on the
-- server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements, 3 the state of the fleet, 4 the lost instances by
-- the end of the lease of their last process (ms), 5 the announcements of these processes.
-- ARGV: 1 the process, 2 the length of its lease (ms), 3 its announcement, 4 the length of the observer's lease (ms), or 0:
-- the process shall not observe, 5 the name of its instance.
-- Returns: 1 the number of live processes, 2 the time of the server (µs), 3 whether this process observes the fleet (1), 4 the
-- version of the assignments of ranges.
local process, observed, instance = ARGV[1], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- In the order of their ends, so that the last process of an instance stays.
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, 64)
for i = 1, #ended, 2 do
  -- A row that no instance has written is forgotten.
  if redis.call('HSTRLEN', KEYS[2], ended[i]) <= 262144 then
    local text = redis.call('HGET', KEYS[2], ended[i]) or ''
    local is_read, row = pcall(cjson.decode, text)
    local name = is_read and type(row) == 'table' and type(row.instance) == 'string' and row.instance or ''
    if #name > 0 and #name <= 1024 then
      redis.call('ZADD', KEYS[4], ended[i + 1], name)
      redis.call('HSET', KEYS[5], name, text)
    end
  end
  redis.call('HDEL', KEYS[2], ended[i])
  redis.call('ZREM', KEYS[1], ended[i])
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), process)
redis.call('HSET', KEYS[2], process, ARGV[3])
redis.call('ZREM', KEYS[4], instance)
redis.call('HDEL', KEYS[5], instance)
local function forget(names)
  for _, name in ipairs(names) do
    redis.call('ZREM', KEYS[4], name)
    redis.call('HDEL', KEYS[5], name)
  end
end
-- A time that is far ahead is that of no instance.
local ahead = string.format('%.0f', now + 3600000)
forget(redis.call('ZRANGEBYSCORE', KEYS[4], ahead, '+inf', 'LIMIT', 0, 1024))
local surplus = redis.call('ZCARD', KEYS[4]) - 4096
if surplus > 0 then
  forget(redis.call('ZRANGE', KEYS[4], 0, math.min(surplus, 1024) - 1))
end
local state = redis.call('HMGET', KEYS[3], 'observer', 'observer_until')
local is_observer = (state[1] == process or (tonumber(state[2] or 0) or 0) <= now) and observed > 0
if is_observer then
  redis.call('HSET', KEYS[3], 'observer', process, 'observer_until', string.format('%.0f', now + observed))
elseif state[1] == process then
  redis.call('HDEL', KEYS[3], 'observer', 'observer_until')
end
local assignments = redis.call('HGET', KEYS[3], 'assignments_version') or 0
local live = redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', now), '+inf')
return { live, time[1] * 1000000 + time[2], is_observer and 1 or 0, tonumber(assignments) or 0 }
