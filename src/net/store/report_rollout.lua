-- Adds facts to the rollout of the fleet, and returns what has changed since the caller last looked.
-- KEYS[1]: the rollout. ARGV: 1 the version that the caller has seen, empty for all; 2 the digest of the rollout to which the
-- facts belong; then pairs of a field and its value. The first failure stays, unless it is too long to be returned.
-- Returns: all fields and values, the document only to a caller that has seen no version; or nothing if nothing has changed.
-- Fields that no instance or operator writes, because they are too long or too many, are left out.
if redis.call('HGET', KEYS[1], 'digest') == ARGV[2] then
  for field = 3, #ARGV, 2 do
    local known = redis.call('HGET', KEYS[1], ARGV[field])
    local stays = known and #known <= 65536 and ARGV[field] == 'failure'
    if known ~= ARGV[field + 1] and not stays then
      redis.call('HSET', KEYS[1], ARGV[field], ARGV[field + 1])
      redis.call('HINCRBY', KEYS[1], 'version', 1)
    end
  end
end
local version = redis.call('HGET', KEYS[1], 'version')
if (version or '0') == ARGV[1] then
  return {}
elseif not version then
  return { 'version', '0' }
end
local found, total = {}, 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local longest, length = field == 'document' and 4194304 or 65536, redis.call('HSTRLEN', KEYS[1], field)
  local is_wanted = (field ~= 'document' or ARGV[1] == '') and #field <= 1024 and length <= longest
  if is_wanted and #found < 2 * 8192 and total + #field + length <= 33554432 then
    total = total + #field + length
    found[#found + 1] = field
    found[#found + 1] = redis.call('HGET', KEYS[1], field)
  end
end
return found
