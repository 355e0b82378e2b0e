#!lua flags=allow-oom
-- Adds an entry to a stream of the journal, behind the last one of its epoch.
--
-- KEYS: the record. ARGV: epoch, stream ("purges" or "unsafe"), field of the record with its last id, most entries,
-- id of the entry, version of the data, data. Gives the entry's place; nil where the record has another epoch, or does
-- not vouch for this server.
--
-- Places never go back: not where the clock does, nor where a stream was evicted, nor behind what a server before this
-- one gave out and lost (`ids_from`).
--
-- It is let in though Redis is out of memory: what the streams take is bounded, and a purge must not wait for memory.
local record = KEYS[1]
local epoch, stream, last, most, id, version, data = unpack(ARGV)

local function info(section, field)
  return string.match(redis.call('INFO', section), '\n' .. field .. ':([^\r\n]*)') or ''
end

local has_epoch, server, before, ids_from = unpack(redis.call('HMGET', record, 'epoch', 'server', last, 'ids_from'))
if has_epoch ~= epoch or server ~= info('server', 'run_id') .. '/' .. info('replication', 'master_replid') then
  return false
end
local time = redis.call('TIME')
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ids_from) or 0)
local before_ms, before_sequence = string.match(before, '(%d+)-(%d+)')
local place = string.format('%.0f-0', ms)
if ms <= tonumber(before_ms) then
  place = before_ms .. '-' .. string.format('%.0f', before_sequence + 1)
end
redis.call('XADD', record .. ':' .. stream .. ':' .. epoch, 'MAXLEN', '~', most, place,
  'prev', before, 'id', id, 'v', version, 'data', data)
redis.call('HSET', record, last, place)
return place
