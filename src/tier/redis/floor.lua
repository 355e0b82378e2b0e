-- Raises a floor: KEYS is it, ARGV the time before which nothing of the URL may have been fetched, and the milliseconds that it
-- lives. One that comes late, behind a later one of another node, lowers nothing.
local there = redis.call('GET', KEYS[1])
local is_later = there and (tonumber(there) or 0) > tonumber(ARGV[1])
redis.call('SET', KEYS[1], is_later and there or ARGV[1], 'PX', ARGV[2])
