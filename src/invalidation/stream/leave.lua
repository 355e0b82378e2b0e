#!lua flags=allow-oom
-- Notes that a node has left, if it still is this instance.
--
-- KEYS: the record. ARGV: name of the node, instance.
local record = KEYS[1]
local field, instance = 'node:' .. ARGV[1], ARGV[2]

local member = redis.call('HGET', record, field)
if member and string.sub(member, 1, #instance + 1) == instance .. ' ' then
  redis.call('HSET', record, field, (string.gsub(member, ' stays ', ' left ', 1)))
end
return 'OK'
