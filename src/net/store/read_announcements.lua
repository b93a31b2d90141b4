-- Reads the announcements of the live processes, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements.
-- Returns, for each live process: 1 the end of its lease (ms), 2 its announcement.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local live = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now), '+inf', 'WITHSCORES')
local announcements = {}
for i = 1, #live, 2 do
  local announcement = redis.call('HGET', KEYS[2], live[i])
  if announcement then
    announcements[#announcements + 1] = { live[i + 1], announcement }
  end
end
return announcements
