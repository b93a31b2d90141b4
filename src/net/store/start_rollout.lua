-- Replaces the rollout of the fleet, unless another operator has replaced it in the meantime.
-- KEYS[1]: the rollout. ARGV: 1 the digest of the rollout that is replaced, empty for none; then pairs of a field and its
-- value, of which the first is the digest. Returns: 1 if it was replaced, now or by this call before it was repeated.
local digest = redis.call('HGET', KEYS[1], 'digest') or ''
if digest == ARGV[3] then
  return 1
elseif digest ~= ARGV[1] then
  return 0
end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  redis.call('HDEL', KEYS[1], field)
end
redis.call('HSET', KEYS[1], 'version', version, unpack(ARGV, 2))
return 1
