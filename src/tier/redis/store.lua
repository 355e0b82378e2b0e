-- Makes a stored response visible: KEYS are its head and its primary record, ARGV their content, the milliseconds that they
-- live, where in a record the time stands at which its fetch began, and where in a head the id of its body (16 bytes, then the
-- length in 8 and the number of segments in 4). A record replaces another only if its fetch began later, or as late. What began
-- more than a second ahead of the clock here was timed by a clock that is wrong: no floor would be above it, so it is not taken,
-- and stands in nobody's way.
-- Answers: whether it is visible, and body and segments of the head that it replaced.
local keep, at, body_at = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local latest = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + 1000

local function began(record)
  if #record < at + 7 or string.sub(record, 1, 3) ~= 'TCL' then
    return nil
  end
  return (struct.unpack('<i8', record, at))
end

local function put(key, record, keep)
  local there = redis.call('GETRANGE', key, 0, body_at + 26)
  local since = began(there)
  if since and since > began(record) and since <= latest then
    return nil
  end
  redis.call('SET', key, record, 'PX', keep)
  return there
end

local own = began(ARGV[1])
if own and own > latest then
  return {0, '', 0}
end
local replaced = put(KEYS[1], ARGV[1], keep)
if not replaced then
  return {0, '', 0}
end
-- It is there as long as any of the heads that it leads to.
local longest = math.max(keep, redis.call('PTTL', KEYS[2]))
if not put(KEYS[2], ARGV[2], longest) then
  redis.call('PEXPIRE', KEYS[2], longest)
end
-- Of another kind or version it says nothing of a body.
if #replaced < body_at + 27 or string.sub(replaced, 1, 5) ~= string.sub(ARGV[1], 1, 5) then
  return {1, '', 0}
end
return {1, string.sub(replaced, body_at, body_at + 15), (struct.unpack('<I4', replaced, body_at + 24))}
