#!lua flags=allow-oom
-- Makes a new epoch of the journal, if the record still has the one that is expected.
--
-- KEYS: the record. ARGV: the epoch expected ("" where there is no record), the least epoch to make, the last position
-- that its maker applied. Gives the epoch of the record afterwards, whoever made it; 0 where there is no
-- record.
local record = KEYS[1]
local expected, at_least, base = unpack(ARGV)

local function info(section, name)
  return string.match(redis.call('INFO', section), '\n' .. name .. ':([^\r\n]*)') or ''
end

local epoch = redis.call('HGET', record, 'epoch') or ''
if epoch ~= expected then
  return epoch ~= '' and epoch or '0'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local made = string.format('%.0f', math.max(tonumber(at_least), now, (tonumber(epoch) or 0) + 1))
-- Where the record is lost, streams may still be there of which a node that starts knows nothing: so the epochs stand in a
-- set of their own. (An expiry would make the streams what Redis evicts when it is full.)
local epochs = record .. ':epochs'
local before = redis.pcall('SMEMBERS', epochs)
before[#before + 1] = epoch
before[#before + 1] = string.format('%.0f', tonumber(at_least) - 1)
for _, of in ipairs(before) do
  redis.call('UNLINK', record .. ':purges:' .. of, record .. ':unsafe:' .. of)
end
redis.call('DEL', epochs)
redis.call('SADD', epochs, made)
redis.call('HSET', record, 'epoch', made, 'base', base, 'last', '0-0', 'unsafe_last', '0-0',
  'server', info('server', 'run_id') .. '/' .. info('replication', 'master_replid'), 'since', string.format('%.0f', now))
redis.call('HDEL', record, 'doubt', 'ids_from')
return made
