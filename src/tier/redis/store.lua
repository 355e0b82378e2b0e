-- Makes a stored response visible: KEYS are its head and its primary record, ARGV their content, the milliseconds that they
-- live, and where in a record the time stands at which its fetch began. A record replaces another only if its fetch began
-- later, or as late.
local at, keep = tonumber(ARGV[4]), tonumber(ARGV[3])

local function began(record)
  if #record < at + 7 or string.sub(record, 1, 3) ~= 'TCL' then
    return nil
  end
  return (struct.unpack('<i8', record, at))
end

local function put(key, record, keep)
  local there = began(redis.call('GETRANGE', key, 0, at + 6))
  if there and there > began(record) then
    return false
  end
  redis.call('SET', key, record, 'PX', keep)
  return true
end

if not put(KEYS[1], ARGV[1], keep) then
  return 0
end
-- It is there as long as any of the heads that it leads to.
put(KEYS[2], ARGV[2], math.max(keep, redis.call('PTTL', KEYS[2])))
return 1
