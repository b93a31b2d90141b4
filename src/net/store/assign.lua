-- Reads the assignments of ranges, and replaces them if they are those that the caller knows.
-- KEYS: 1 the processes, which this script does not use, 2 the state of the fleet.
-- ARGV: 1 the version that the caller knows, 2 the version of the next assignments, 3 these assignments, or nothing: to read.
-- Returns: 1 the version of the assignments of now, 2 these assignments, or nothing. Assignments that are too long are not read.
local version = redis.call('HGET', KEYS[2], 'assignments_version') or '0'
if ARGV[3] == '' or version ~= ARGV[1] then
  if redis.call('HSTRLEN', KEYS[2], 'assignments') > 2097152 then return { version, 'too long' } end
  return { version, redis.call('HGET', KEYS[2], 'assignments') or '' }
end
redis.call('HSET', KEYS[2], 'assignments_version', ARGV[2], 'assignments', ARGV[3])
return { ARGV[2], ARGV[3] }
