-- Leases permits of one limit key from the concurrency that the fleet shares, on the server's clock.
-- KEYS[1]: the key. ARGV: 1 the process, 2 the permits that it wants in all, 3 the permits that its deliveries in flight
-- use, or may use until the answer, 4 the maximum of the fleet, 5 the length of the lease (ms), 6 the time for which a
-- process that got fewer than it wants counts as one that wants them (ms).
-- Returns: 1 the permits that this process may use until the lease ends, 2 the permits of the other processes.
-- Each process may have an equal part of the maximum, rounded down, and what the others do not want of theirs.
local process, wanted, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local maximum, length, patience = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.call('HGETALL', KEYS[1])
local others, wants = 0, {}
for i = 1, #leases, 2 do
  local permits, ends, wish = string.match(leases[i + 1], '^(%d+) (%d+) (%d+)$')
  if not permits or tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], leases[i])
  elseif leases[i] ~= process then
    others = others + tonumber(permits)
    local is_fresh = tonumber(ends) > now + length - patience
    wants[#wants + 1] = is_fresh and tonumber(wish) or tonumber(permits)
  end
end
local part, room = math.floor(maximum / (#wants + 1)), maximum
for _, wish in ipairs(wants) do
  room = room - math.min(wish, part)
end
local permits = math.max(math.min(wanted, room, maximum - others), 0)
-- A delivery in flight is not ended, so the lease has at least those: after a loss of the store's data, too.
local held = math.max(permits, used)
if math.max(held, wanted) > 0 then
  redis.call('HSET', KEYS[1], process, string.format('%d %.0f %d', held, now + length, wanted))
  redis.call('PEXPIRE', KEYS[1], length)
else
  redis.call('HDEL', KEYS[1], process)
end
return { permits, others }
