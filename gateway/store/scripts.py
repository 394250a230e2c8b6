"""Which decisions does the server take by itself?   One Lua function per decision; its clock is the server's."""

import hashlib
from typing import Final

# KEYS  rate, slots [, entry] of one caller; ARGV  requests per minute, interval us, concurrency, lease us, lease.
# -> {0 allowed | 1 refused by requests | 2 refused by concurrency, us until idle, entry or nil}
# rate: GCRA's theoretical arrival time in whole microseconds (below 2^53: exact in Lua). A stored time further ahead
# than the window is a clock that went back, or a limit that changed: it is cut to the window.
# slots: a sorted set of leases by deadline. Both keys outlive cache entries by far, so that `volatile-ttl` evicts
# entries first.
ADMIT: Final = b"""
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval = tonumber(ARGV[2])
local window = interval * ARGV[1]
local spent = math.min(math.max((tonumber(redis.call('GET', KEYS[1])) or now) - now, 0), window)
if spent + interval > window then return {1, spent} end
local entry = KEYS[3] and redis.call('GET', KEYS[3])
if not entry then
  local concurrency = tonumber(ARGV[3])
  if redis.call('ZCARD', KEYS[2]) >= concurrency then
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
    if redis.call('ZCARD', KEYS[2]) >= concurrency then return {2, spent} end
  end
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[4]), ARGV[5])
  redis.call('EXPIRE', KEYS[2], 172800)
end
spent = spent + interval
redis.call('SET', KEYS[1], string.format('%.0f', now + spent), 'EX', 172800)
return {0, spent, entry}
"""
ADMIT_SHA: Final = hashlib.sha1(ADMIT, usedforsecurity=False).hexdigest().encode()

# KEYS  keys; ARGV  id, record. -> 1 if it is the first key and was kept
FIRST_KEY: Final = b"""
if redis.call('HLEN', KEYS[1]) > 0 then return 0 end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""

# KEYS  claim, entry; ARGV  token, ms. -> {"", entry}, or {the token that holds the claim}
CLAIM: Final = b"""
local entry = redis.call('GET', KEYS[2])
if entry then return {'', entry} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {holder} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {ARGV[1]}
"""

# KEYS  claim; ARGV  token, ms, what stands in its place for so long (0: nothing).
UNCLAIM: Final = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
"""
