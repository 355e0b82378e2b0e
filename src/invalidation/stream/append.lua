#!lua flags=allow-oom
-- Adds an entry to a stream of the journal, behind the last one of its epoch.
--
-- KEYS: the record. ARGV: epoch, stream ("purges" or "unsafe"), field of the record with its last id, most entries,
-- id of the entry, version of the data, data. Gives the entry's place; nil where the record has another epoch, or vouches
-- for another server than this.
--
-- The place is the latest of the time, of where places begin on this server, and of the next after the last: a stream that
-- was evicted looks like one that was trimmed, and no place comes twice, whatever was lost.
-- It is let in though Redis is out of memory: what the streams take is bounded, and a purge must not wait for memory.
local record = KEYS[1]
local epoch, stream, last_field, most, id, version, data = unpack(ARGV)

local function info(section, name)
  return string.match(redis.call('INFO', section), '\n' .. name .. ':([^\r\n]*)') or ''
end

local server = info('server', 'run_id') .. '/' .. info('replication', 'master_replid')
local fields = redis.call('HMGET', record, 'epoch', 'server', last_field, 'ids_from')
if fields[1] ~= epoch or fields[2] ~= server then
  return false
end
local last = fields[3]
local last_ms, last_sequence = string.match(last, '(%d+)-(%d+)')
local time = redis.call('TIME')
local from = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(fields[4] or '0'))
local place
if tonumber(last_ms) >= from then
  place = last_ms .. '-' .. string.format('%.0f', tonumber(last_sequence) + 1)
else
  place = string.format('%.0f-0', from)
end
redis.call('XADD', record .. ':' .. stream .. ':' .. epoch, 'MAXLEN', '~', most, place,
  'prev', last, 'id', id, 'v', version, 'data', data)
redis.call('HSET', record, last_field, place)
return place
