-- Lists the names of the live instances of the fleet, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements. Returns: the names.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local names = {}
for _, process in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now), '+inf')) do
  local announcement = redis.call('HGET', KEYS[2], process)
  if announcement then
    names[#names + 1] = cjson.decode(announcement).instance
  end
end
return names
