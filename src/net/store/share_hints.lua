-- Keeps the hints of an instance for a lease, and reads those of all instances, on the server's clock.
-- KEYS[1]: the set of the hints by their ends. ARGV: 1 the length of a lease (ms), 2 the number of hints to keep and to read,
-- 3 the longest hint to read, 4... the hints of the instance.
-- Returns: the hints that have not ended.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cleaned = redis.pcall('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
if type(cleaned) == 'table' then return {} end -- a key of another type is no reason to call the store away
for index = 4, #ARGV do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[1])), ARGV[index])
end
if #ARGV > 3 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[2]))
local hints = {}
for _, hint in ipairs(redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)) do
  if #hint <= tonumber(ARGV[3]) then hints[#hints + 1] = hint end
end
return hints
