-- Leases permits of one limit key from the concurrency that the fleet shares, on the server's clock.
-- KEYS[1]: the key. ARGV: 1 the process, 2 the permits that it wants in all, 3 the permits that its deliveries in flight
-- use, or may use until the answer, 4 the maximum of the fleet, 5 the length of the lease (ms), 6 the time for which a
-- process that got fewer than it wants counts as one that wants them (ms), 7 the length of a term (ms),
-- 8 the number of the request: one below that of the last request of this process has come late, and changes nothing.
-- Returns: 1 the permits that this process may use until the lease ends, 2 the permits of the other processes.
-- If the processes want more than the maximum, each gets what it wants, and at most the level: the greatest number for which
-- that is possible. The rest, fewer permits than processes that want more, goes round: one permit each, for a term.
-- The value of a process is "held ends wish place request". Its place in the order is the negative end of its term, or else the
-- time at which it began to wait. The lowest places have a permit of the rest: a term that began lasts until its end, and next
-- is the process that has waited for the longest. A term that is over counts as a wait that begins now.
local process, wanted, used = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local maximum, length, patience, term = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local request = tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = redis.call('HGETALL', KEYS[1])
local others, own, is_waited, is_late, claims, wishes = 0, now, false, false, {}, { wanted }
for i = 1, #leases, 2 do
  local permits, ends, wish, place, last = string.match(leases[i + 1], '^(%d+) (%d+) (%d+) (%-?%d+) (%d+)$')
  permits, ends, wish, place, last =
    tonumber(permits), tonumber(ends), tonumber(wish), tonumber(place), tonumber(last)
  if not permits or ends <= now then
    redis.call('HDEL', KEYS[1], leases[i])
  else
    if ends > now + length then
      -- The clock of the former server was ahead, or no instance has written this.
      ends = now + length
      redis.call('HSET', KEYS[1], leases[i], string.format('%d %.0f %d %.0f %.0f', permits, ends, wish, place, last))
    end
    if place < 0 and (-place <= now or -place > now + term) then
      place = now
    end
    place = math.min(place, now)
    if leases[i] == process then
      own, is_late = place, request < last
    else
      local is_fresh = ends > now + length - patience
      wish = is_fresh and wish or permits
      others, is_waited = others + permits, is_waited or wish > permits
      wishes[#wishes + 1] = wish
      claims[#claims + 1] = { process = leases[i], wish = wish, place = place }
    end
  end
end
if is_late then
  return { 0, others }
end
table.sort(wishes)
local level, rest, left = 0, 0, maximum
for i, wish in ipairs(wishes) do
  local more = #wishes - i + 1
  level, rest = math.floor(left / more), left % more
  if wish > level then
    break
  end
  left = left - wish
end
local ahead = 0
for _, claim in ipairs(claims) do
  local is_before = claim.place < own or claim.place == own and claim.process < process
  ahead = ahead + (claim.wish > level and is_before and 1 or 0)
end
local part = math.min(wanted, ahead < rest and level + 1 or level)
local permits = math.max(math.min(part, maximum - others), 0)
if permits >= wanted and not is_waited or permits > level and own >= 0 then
  own = -(now + term) -- while no process waits, a term begins anew with each request
elseif wanted <= level then
  own = now
end
-- A delivery in flight is not ended, so the lease has at least those: after a loss of the store's data, too.
local held = math.max(permits, used)
if math.max(held, wanted) > 0 then
  redis.call('HSET', KEYS[1], process, string.format('%d %.0f %d %.0f %.0f', held, now + length, wanted, own, request))
  redis.call('PEXPIRE', KEYS[1], length)
else
  redis.call('HDEL', KEYS[1], process)
end
return { permits, others }
