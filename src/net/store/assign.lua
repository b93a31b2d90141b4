-- Reads the assignments of ranges, and replaces them if they are those that the caller knows.
-- KEYS: 1 the processes, which this script does not use, 2 the state of the fleet.
-- ARGV: 1 the version that the caller knows, 2 the version of the next assignments, 3 these assignments, or nothing: to read.
-- Returns: 1 the assignments of now, or nothing.
local state = redis.call('HMGET', KEYS[2], 'assignments_version', 'assignments')
if ARGV[3] == '' or (state[1] or '0') ~= ARGV[1] then
  return { state[2] or '' }
end
redis.call('HSET', KEYS[2], 'assignments_version', ARGV[2], 'assignments', ARGV[3])
return { ARGV[3] }
