#!lua flags=allow-oom
-- Adds an entry to a stream of the journal, behind the last one of its epoch.
--
-- KEYS: the record. ARGV: epoch, stream ("purges" or "unsafe"), field of the record with its last id, most entries,
-- id of the entry, version of the data, data. Gives the entry's place; nil where the record has another epoch, or vouches
-- for another server than this.
--
-- The place is the latest of the time, of where places begin on this server, and of the next after the last, by the record
-- and by the stream, where others may have put something: a stream that was evicted looks like one that was trimmed, and no
-- place comes twice, whatever was lost.
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
local key = record .. ':' .. stream .. ':' .. epoch
local time = redis.call('TIME')
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(fields[4] or '0'))
local sequence = 0
local function go_behind(place)
  local place_ms, place_sequence = string.match(place, '(%d+)-(%d+)')
  place_ms, place_sequence = tonumber(place_ms), tonumber(place_sequence)
  if place_ms > ms or (place_ms == ms and place_sequence >= sequence) then
    ms, sequence = place_ms, place_sequence + 1
  end
end
go_behind(last)
-- Where there is no stream this is an error, and has no fields.
local about = redis.pcall('XINFO', 'STREAM', key)
for at = 1, #about, 2 do
  if about[at] == 'last-generated-id' then
    go_behind(about[at + 1])
  end
end
local place = string.format('%.0f-%.0f', ms, sequence)
redis.call('XADD', key, 'MAXLEN', '~', most, place, 'prev', last, 'id', id, 'v', version, 'data', data)
redis.call('HSET', record, last_field, place)
return place
