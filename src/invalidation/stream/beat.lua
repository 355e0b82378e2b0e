#!lua flags=allow-oom
-- A heartbeat: renews the registration of a node and says how things stand (`invalidation::fleet::protocol::Beat`).
--
-- KEYS: the record. ARGV: name, instance, policy, beat, acknowledged, epoch, applied, unsafe_applied, witness (id of the
-- purge at `applied`, or ""), believed (the server that the node believes to talk to), vouch ("", "together", or the time
-- until which "unbroken" holds), prune_ms, by how much places on a server that is vouched for begin ahead of its time,
-- lapse_ms; then name and text of each member to be put back.
-- Gives: this server, the time, what became of it, and of the record: epoch, base, last, unsafe_last, what comes before the
-- first entry of each stream, server, since, doubt; then name and text of each member.
--
-- A member: instance, beat, acknowledged, applied, time, "stays" or "left", policy, server. A doubt: server, since, the
-- newest heartbeat before, "spoiled" or "whole".
local record = KEYS[1]
local name, instance, policy, beat, acknowledged, epoch, applied, unsafe_applied, witness, believed, vouch = unpack(ARGV)
local prune_ms, ids_ahead_ms, lapse_ms = ARGV[12], ARGV[13], ARGV[14]

local function info(section, field)
  return string.match(redis.call('INFO', section), '\n' .. field .. ':([^\r\n]*)') or ''
end

local function words(text)
  local all = {}
  for word in string.gmatch(text, '%S+') do
    all[#all + 1] = word
  end
  return all
end

-- Whether one place of a stream is before another.
local function is_before(one, other)
  local ms, sequence = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_sequence = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(sequence) < tonumber(other_sequence))
end

local function field_of(entry, wanted)
  for at = 1, #entry[2], 2 do
    if entry[2][at] == wanted then
      return entry[2][at + 1]
    end
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local server = info('server', 'run_id') .. '/' .. info('replication', 'master_replid')

local fields, members = {}, {}
local flat = redis.call('HGETALL', record)
for at = 1, #flat, 2 do
  local node = string.match(flat[at], '^node:(.*)$')
  if node then
    members[node] = flat[at + 1]
  else
    fields[flat[at]] = flat[at + 1]
  end
end
if not fields.epoch then
  return { server, now_text, 'no_record' }
end
-- A member whose time cannot be read was written by nobody who knows how: it would be waited for, for ever.
for node, member in pairs(members) do
  local at = words(member)[5] or ''
  if #at > 15 or not string.match(at, '^%d+$') then
    members[node] = nil
    redis.call('HDEL', record, 'node:' .. node)
  end
end

local purges, unsafe = record .. ':purges:' .. fields.epoch, record .. ':unsafe:' .. fields.epoch
-- What comes before the first entry of a stream that says so: others are not the journal's.
local function previous_of_first(stream, last)
  local from = '-'
  repeat
    local some = redis.call('XRANGE', stream, from, '+', 'COUNT', from == '-' and 1 or 100)
    for _, entry in ipairs(some) do
      local previous = field_of(entry, 'prev')
      if previous and string.match(previous, '^%d+%-%d+$') then
        return previous
      end
      from = '(' .. entry[1]
    end
  until #some == 0
  return last
end

-- Whether others have put something so far into the future that no place is left behind it: numbers here are exact up to 2^53.
local function is_used_up(stream)
  local about = redis.pcall('XINFO', 'STREAM', stream)
  for at = 1, #about, 2 do
    if about[at] == 'last-generated-id' then
      return tonumber(string.match(about[at + 1], '%d+')) >= 2 ^ 52
    end
  end
end

local first_previous = previous_of_first(purges, fields.last)
local unsafe_first_previous = previous_of_first(unsafe, fields.unsafe_last)

local function answer(status)
  local all = { server, now_text, status, fields.epoch, fields.base, fields.last, fields.unsafe_last, first_previous,
    unsafe_first_previous, fields.server, fields.since, fields.doubt or '' }
  for node, member in pairs(members) do
    all[#all + 1] = node
    all[#all + 1] = member
  end
  return all
end

local doubt = fields.doubt and words(fields.doubt)
if fields.server ~= server and not (doubt and doubt[1] == server) then
  local newest = 0
  for _, member in pairs(members) do
    newest = math.max(newest, tonumber(words(member)[5]))
  end
  doubt = { server, now_text, string.format('%.0f', newest), 'whole' }
  fields.doubt = table.concat(doubt, ' ')
  redis.call('HSET', record, 'doubt', fields.doubt)
end
if believed ~= server then
  return answer('other_server')
end
if epoch ~= fields.epoch then
  return answer('other_epoch')
end
if is_before(applied, first_previous) or is_before(unsafe_applied, unsafe_first_previous) then
  return answer('behind_trim')
end
if is_before(fields.last, applied) or is_used_up(purges) or is_used_up(unsafe) then
  return answer('entry_lost')
end
if witness ~= '' and is_before(first_previous, applied) then
  local entry = redis.call('XRANGE', purges, applied, applied)[1]
  if not entry or field_of(entry, 'id') ~= witness then
    return answer('entry_lost')
  end
end

local there = members[name] and words(members[name])
local stayed = there and there[6] == 'stays'
if stayed and there[1] ~= instance and math.abs(now - tonumber(there[5])) < tonumber(lapse_ms) then
  return answer('name_taken')
end
local continued = stayed and there[1] == instance and tonumber(there[2]) >= tonumber(acknowledged)
local replaces = stayed and there[1] ~= instance
if doubt and not continued and (acknowledged ~= '0' or replaces) then
  doubt[4] = 'spoiled'
  fields.doubt = table.concat(doubt, ' ')
  redis.call('HSET', record, 'doubt', fields.doubt)
end
for node, member in pairs(members) do
  if now - tonumber(words(member)[5]) >= tonumber(prune_ms) then
    members[node] = nil
    redis.call('HDEL', record, 'node:' .. node)
  end
end
for at = 15, #ARGV, 2 do
  if not members[ARGV[at]] then
    members[ARGV[at]] = ARGV[at + 1]
    redis.call('HSET', record, 'node:' .. ARGV[at], ARGV[at + 1])
  end
end
members[name] = table.concat({ instance, beat, acknowledged, epoch .. '-' .. applied, now_text, 'stays', policy, server }, ' ')
redis.call('HSET', record, 'node:' .. name, members[name])
if fields.server ~= server then
  local holds = vouch == 'together' and doubt[4] == 'whole' or (tonumber(vouch) and now <= tonumber(vouch))
  if holds then
    fields.server, fields.since, fields.doubt = server, now_text, nil
    local ids_from = string.format('%.0f', now + tonumber(ids_ahead_ms))
    redis.call('HSET', record, 'server', server, 'since', now_text, 'ids_from', ids_from)
    redis.call('HDEL', record, 'doubt')
  end
end
return answer(continued and 'continued' or 'begun')
