-- Lists the names of the live instances of the fleet, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements. Returns: the names.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local names = {}
for _, process in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now), '+inf',
  'LIMIT', 0, 4096)) do
  -- A row that no instance has written has no name.
  if redis.call('HSTRLEN', KEYS[2], process) <= 262144 then
    local is_read, row = pcall(cjson.decode, redis.call('HGET', KEYS[2], process) or '')
    if is_read and type(row) == 'table' and type(row.instance) == 'string' and #row.instance <= 1024 then
      names[#names + 1] = row.instance
    end
  end
end
return names
