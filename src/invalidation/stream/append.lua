#!lua flags=allow-oom
-- Adds an entry to a stream of the journal, behind the last one of its epoch.
--
-- KEYS: the record. ARGV: epoch, stream ("purges" or "unsafe"), field of the record with its last id, most entries,
-- id of the entry, version of the data, data. Gives the entry's place; nil where the record has another epoch.
--
-- It is let in though Redis is out of memory: what the streams take is bounded, and a purge must not wait for memory.
local record = KEYS[1]
local epoch, stream, last, most, id, version, data = unpack(ARGV)

if redis.call('HGET', record, 'epoch') ~= epoch then
  return false
end
local place = redis.call('XADD', record .. ':' .. stream .. ':' .. epoch, 'MAXLEN', '~', most, '*',
  'prev', redis.call('HGET', record, last), 'id', id, 'v', version, 'data', data)
redis.call('HSET', record, last, place)
return place
