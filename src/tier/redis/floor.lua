-- Raises a floor: KEYS is it, ARGV the time before which nothing of the URL may have been fetched, and the milliseconds that it
-- lives. One that comes late, behind a later one of another node, lowers nothing. None is more than a second ahead of the clock
-- here, whatever a node takes the time for: nothing that is fetched until then could be used.
local time = redis.call('TIME')
local latest = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + 1000
local wanted = tonumber(ARGV[1])
local there = tonumber(redis.call('GET', KEYS[1]) or wanted) or wanted
redis.call('SET', KEYS[1], string.format('%.0f', math.min(math.max(there, wanted), latest)), 'PX', ARGV[2])
