-- Takes tokens of one limit key from the rate that the fleet shares (GCRA), on the server's clock.
-- KEYS: 1 the key, 2 the number of the last report of this process about it.
-- ARGV: 1 count and 2 period (µs) of the rate, 3 burst, 4 hold (µs), 5 tokens wanted, 6 tokens returned, 7 the slot of the first
-- of these (µs), 8 the end of the slice that they are the last of (µs) or 0, 9 tokens that the instance used while the store was
-- away, 10 the number of the report of tokens returned and used, or 0, 11 the time for which the process may tell it again (ms).
-- Returns: 1 tokens granted, 2 the slot of the first (µs), 3 the time of the server (µs), 4 the time at which the whole
-- burst is available again (µs), 5 the time until a token is due if none was granted (µs), 6 whether each token has a slot
-- of its own (1). Otherwise, all have that of the first. A token must be used before its slot is over.
-- Integers are exact: microseconds since 1970 need 51 bits, and a number of Lua has 53.
local count, period, burst, hold = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local wanted, returned, returned_until = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local returned_arrival, used = tonumber(ARGV[8]), tonumber(ARGV[9])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[1], 'arrival', 'spare', 'spare_until')

local function time_of(tokens)
  return math.ceil(tokens * period / count)
end

-- A report whose answer was lost is told again, and counts once.
if returned > 0 or used > 0 then
  if (tonumber(redis.call('GETRANGE', KEYS[2], 0, 15)) or 0) >= tonumber(ARGV[10]) then
    returned, used = 0, 0
  else
    redis.call('SET', KEYS[2], ARGV[10], 'PX', ARGV[11])
  end
end

-- Returns a stored number, which is within these bounds unless the limit was another one, or no instance has written it.
local function stored(text, least, most)
  local number = tonumber(text or 0) or 0
  return number > least and math.min(number, most) or least
end

-- Instances owe at most a burst besides the burst that is used up.
local latest = now + 2 * time_of(burst)
local arrival = stored(state[1], now, latest)
local spare, spare_until = stored(state[2], 0, burst), stored(state[3], 0, latest)

if spare_until <= now then
  spare = 0
end
if returned > 0 and returned_arrival == arrival then
  -- No slice came after: the slots are as if they had not been given.
  arrival = arrival - math.floor(returned * period / count)
elseif returned > 0 and returned_until > now then
  spare_until = spare > 0 and math.min(spare_until, returned_until) or returned_until
  spare = spare + returned
end
if used > 0 then
  arrival = math.max(arrival, now) + time_of(used)
end

local granted, granted_until, wait, is_spaced = 0, 0, 0, 1
if spare > 0 and wanted > 0 then
  granted = math.min(spare, wanted)
  granted_until, is_spaced = spare_until, 0
  spare = spare - granted
end
-- The slot of the first token is not before now + hold, so that the instance may hold the tokens for this long.
local tolerance = math.floor((burst - 1) * period / count)
local first = math.max(arrival, now + hold)
local room = now + tolerance - first
if granted < wanted and room >= 0 then
  local fresh = math.min(wanted - granted, math.floor(room * count / period) + 1)
  granted_until = granted > 0 and math.min(granted_until, first) or first
  granted = granted + fresh
  arrival = first + time_of(fresh)
elseif granted == 0 and wanted > 0 then
  wait = -room
end

redis.call('HSET', KEYS[1], 'arrival', string.format('%.0f', arrival),
  'spare', string.format('%.0f', spare), 'spare_until', string.format('%.0f', spare_until))
local rest = math.max(arrival, spare > 0 and spare_until or 0) - now
redis.call('PEXPIRE', KEYS[1], math.max(math.ceil(rest / 1000), 1))
return { granted, granted_until, now, arrival, wait, is_spaced }
