#!lua flags=allow-oom
-- A heartbeat: renews the registration of a node and says how things stand (`invalidation::fleet::protocol::Beat`).
--
-- KEYS: the record. ARGV: name, instance, policy, beat, acknowledged, epoch, applied, unsafe_applied, witness (id of the
-- purge at `applied`, or ""), believed (the server that the node believes to talk to), vouch ("", "together", or the time
-- until which "unbroken" holds), prune_ms, by how much places on a server that is vouched for begin ahead of its time;
-- then name and text of each member to be put back.
-- Gives: this server, the time, what became of it, and of the record: epoch, base, last, unsafe_last, what comes before the
-- first entry of each stream, server, since, doubt; then name and text of each member.
--
-- A member: instance, beat, acknowledged, applied, time, "stays" or "left", policy, server. A doubt: server, since, the
-- newest heartbeat before, "spoiled" or "whole".
local record = KEYS[1]
local name, instance, policy, beat, acknowledged, epoch, applied, unsafe_applied, witness, believed, vouch = unpack(ARGV)
local prune_ms, ids_ahead_ms = ARGV[12], ARGV[13]

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

local purges, unsafe = record .. ':purges:' .. fields.epoch, record .. ':unsafe:' .. fields.epoch
local first = redis.call('XRANGE', purges, '-', '+', 'COUNT', 1)[1]
local unsafe_first = redis.call('XRANGE', unsafe, '-', '+', 'COUNT', 1)[1]
local first_previous = first and field_of(first, 'prev') or fields.last
local unsafe_first_previous = unsafe_first and field_of(unsafe_first, 'prev') or fields.unsafe_last

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
if is_before(fields.last, applied) then
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
for at = 14, #ARGV, 2 do
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
