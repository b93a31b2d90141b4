-- Reads the announcements of the live processes, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements.
-- Returns, for each of at most 4,096 live processes: 1 the end of its lease (ms), 2 its announcement, or nothing if it is too
-- long, or if those before it are.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local live = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now), '+inf', 'WITHSCORES',
  'LIMIT', 0, 4096)
local announcements, total = {}, 0
for i = 1, #live, 2 do
  local length = redis.call('HSTRLEN', KEYS[2], live[i])
  if length > 262144 or total + length > 33554432 then
    announcements[#announcements + 1] = { live[i + 1], '' }
  elseif length > 0 then
    total = total + length
    announcements[#announcements + 1] = { live[i + 1], redis.call('HGET', KEYS[2], live[i]) }
  end
end
return announcements
