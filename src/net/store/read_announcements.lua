-- Reads the announcements of the live processes and of the lost instances, on the server's clock.
-- KEYS: 1 the processes by the end of their lease (ms), 2 their announcements, 3 the lost instances by the end of the lease of
-- their last process (ms), 4 the announcements of these processes.
-- Returns: 1 the time of the server (ms), 2 at most 4,096 live processes, 3 at most 4,096 lost instances. Each is: the end of the
-- lease (ms), its process or instance, and its announcement, or nothing if that is too long, or if those before it are.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function read(ends, rows, first, last, most)
  local total = 0
  local found, names = {}, redis.call('ZRANGEBYSCORE', ends, first, last, 'WITHSCORES', 'LIMIT', 0, 4096)
  for i = 1, #names, 2 do
    local length = redis.call('HSTRLEN', rows, names[i])
    if length > 262144 or total + length > most then
      found[#found + 1] = { names[i + 1], names[i], '' }
    elseif length > 0 then
      total = total + length
      found[#found + 1] = { names[i + 1], names[i], redis.call('HGET', rows, names[i]) }
    end
  end
  return found
end

local text = string.format('%.0f', now)
-- Lost instances stay until an operator forgets them, so they must not make the answer late.
return { now, read(KEYS[1], KEYS[2], text, '+inf', 33554432), read(KEYS[3], KEYS[4], '-inf', text, 4194304) }
