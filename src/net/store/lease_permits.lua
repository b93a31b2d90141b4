-- Leases permits of one limit key from the concurrency that the fleet shares, on the server's clock.
-- KEYS[1]: the key. ARGV: 1 the instance, 2 the permits that it wants in all, 3 the permits that its deliveries in flight
-- use, 4 the maximum of the fleet, 5 the length of the lease (ms).
-- Returns: 1 the permits of this instance until the lease ends, 2 the permits of the other instances.
local instance, wanted, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local maximum, length = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.call('HGETALL', KEYS[1])
local others = 0
for i = 1, #leases, 2 do
  local permits, ends = string.match(leases[i + 1], '^(%d+) (%d+)$')
  if not permits or tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], leases[i])
  elseif leases[i] ~= instance then
    others = others + tonumber(permits)
  end
end
-- A delivery in flight is not ended, so the lease has at least those: after a loss of the store's data, too.
local permits = math.max(math.min(wanted, maximum - others), used)
if permits > 0 then
  redis.call('HSET', KEYS[1], instance, string.format('%d %.0f', permits, now + length))
  redis.call('PEXPIRE', KEYS[1], length)
else
  redis.call('HDEL', KEYS[1], instance)
end
return { permits, others }
