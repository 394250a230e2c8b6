"""Which decisions does the server of the store take atomically?   One Lua script each, by the server's clock."""

import hashlib
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A script that takes so many arguments (`words`). `heads`: how the packed EVALSHA command begins, by its number of
    keys."""

    text: bytes
    words: int
    heads: tuple[bytes, ...]


def script(text: bytes, words: int) -> Script:
    known = word(hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())  # as a server knows what it has run
    counts = [b"*%d" % (3 + names + words) for names in range(MOST + 1)]
    run = word(b"EVALSHA") + known
    return Script(text, words, tuple(count + run + word(b"%d" % names) for names, count in enumerate(counts)))


def word(word: bytes) -> bytes:
    """An argument as RESP has it, from the line end before it."""
    return b"\r\n$%d\r\n%b" % (len(word), word)


MOST = 6  # keys that a script may be given

# Both decisions begin with the same lines: read the account, drain its bucket, turn its window, book what expired
# leases held. KEYS  account, leases, holds, ledger of one caller. Times are whole microseconds and money is
# nano-dollars, all below 2^53: exact in Lua. `level` is tokens * 60,000,000, draining by `rate` each microsecond.
#   account  a hash of the numbers in NAMES; idle_at is GCRA's theoretical arrival time. A stored time further ahead
#            than the window is a clock that went back, or a limit that changed: it is cut to the window.
#   leases   a sorted set of leases by deadline; holds: a hash of what each holds, as JSON:
#            [prompt, completion, money, tier, window in which it counts as above the first tier or -1]
#   ledger   a hash: day since 1970/kind/estimated/tier/measure -> sum; one that 64 bits cannot hold stays as it is
# What is not of this form counts as nothing: one caller's must not stop the script, and with it the store for all.
# All of them outlive cache entries by far, so that `volatile-ttl` evicts entries first; each is given its TTL when
# something is put into it.
OPENING: Final = b"""
local UNIT, TTL, KEPT = 60000000, 34560000, 400
local NAMES = {'idle_at', 'tokens', 'money', 'level', 'at', 'rate', 'spent', 'window', 'span', 'asked', 'above',
  'share', 'day'}
local function whole(n) return string.format('%.0f', n) end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local day = math.floor(clock[1] / 86400)
local a, was, stored = {}, {}, redis.call('HMGET', KEYS[1], unpack(NAMES))
for i, name in ipairs(NAMES) do
  local n = tonumber(stored[i] or 0)
  was[name] = n and n >= 0 and n < 9e18 and n or 0
  a[name] = was[name]
end

local function save()
  local changed = {}
  for _, name in ipairs(NAMES) do
    if a[name] ~= was[name] then changed[#changed + 1] = name; changed[#changed + 1] = whole(a[name]) end
  end
  if #changed == 0 then return end
  redis.call('HSET', KEYS[1], unpack(changed))
  redis.call('EXPIRE', KEYS[1], TTL)
end

local function book(tier, kind, estimated, prompt, cached, completion, money, requests)
  local head = table.concat({whole(day), kind, estimated and 1 or 0, tier}, '/') .. '/'
  local sums = {requests = requests, prompt = prompt, cached = cached, completion = completion, money = money}
  for name, count in pairs(sums) do
    if count ~= 0 then redis.pcall('HINCRBY', KEYS[4], head .. name, whole(count)) end
  end
  redis.call('EXPIRE', KEYS[4], TTL)
  if kind == 'answer' then
    if a.rate > 0 then a.level = a.level + (prompt + completion) * UNIT end
    if a.span > 0 then a.spent = a.spent + money end
  end
end

local function take(lease)
  redis.call('ZREM', KEYS[2], lease)
  local text = redis.call('HGET', KEYS[3], lease)
  if not text then return nil end
  redis.call('HDEL', KEYS[3], lease)
  local known, held = pcall(cjson.decode, text)
  if not known or type(held) ~= 'table' or type(held[4]) ~= 'string' then return nil end
  if not (tonumber(held[1]) and tonumber(held[2]) and tonumber(held[3]) and tonumber(held[5])) then return nil end
  a.tokens = a.tokens - held[1] - held[2]
  a.money = a.money - held[3]
  return held
end

local function prune()
  a.day = day
  for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
    if (tonumber(string.match(field, '^%d+')) or 0) < day - KEPT then redis.call('HDEL', KEYS[4], field) end
  end
end

local function advance()
  if a.day ~= day then prune() end
  a.level = a.rate > 0 and math.max(0, a.level - math.max(0, now - a.at) * a.rate) or 0
  a.at = now
  local window = a.span > 0 and math.floor(now / a.span) or 0
  if a.span == 0 or window ~= a.window then a.spent = 0 end
  a.window = window
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
    local held = take(lease)
    if held then book(held[4], 'answer', true, held[1], 0, held[2], held[3], 1) end
  end
end
"""

# KEYS  ... [, entry, turn]; ARGV  two MessagePack arrays behind each other. The limits: us of a lease, requests per
# minute, interval us, concurrency, tokens per minute or 0, budget or -1, its window us, whether it degrades, share or
# -1, its window us, ms for which a turn is the lease's; and what is asked for: lease, and the bound's prompt,
# completion, money, tier, money on the first tier, first tier.
# -> {a member of REFUSALS, us until idle, us to wait, tokens, money, a member of CAPS, entry or nil, whose turn or nil}
ADMIT: Final = script(
    words=1,
    text=OPENING
    + b"""
local limits, asked = cmsgpack.unpack(ARGV[1])
local lasts, requests, interval, concurrency, rate, budget, span, degrades, share, turn, held = unpack(limits)
local lease, prompt, completion, money, tier, cheap, first = unpack(asked)
a.rate, a.span = rate, span
advance()
if share >= 0 then
  local window = math.floor(now / turn)
  if window ~= a.share then a.share, a.asked, a.above = window, 0, 0 end
end
local most = interval * requests
a.idle_at = math.min(a.idle_at, now + most)
local spent = math.max(a.idle_at - now, 0)
local function answer(verdict, wait, capped, entry, maker)
  save()
  return {verdict, spent, math.ceil(wait), math.ceil(a.level / UNIT) + a.tokens, a.spent + a.money, capped,
    entry or false, maker or false}
end
if spent + interval > most then return answer(1, 0, 0) end
local entry = KEYS[5] and redis.call('GET', KEYS[5])
if entry then
  spent = spent + interval
  a.idle_at = now + spent
  return answer(0, 0, 0, entry)
end
local maker = KEYS[6] and redis.call('GET', KEYS[6])
if redis.call('ZCARD', KEYS[2]) >= concurrency then return answer(2, 0, 0) end
local over = a.level + (a.tokens + math.min(prompt + completion, rate) - rate) * UNIT
if rate > 0 and over > 0 then return answer(3, over / rate, 0) end
local used, capped, above = a.spent + a.money, 0, -1
if budget >= 0 and used + money > budget then
  capped = 1
  if not degrades or used + cheap > budget then return answer(4, a.span - now % a.span, 0) end
end
if share >= 0 then
  a.asked = a.asked + 1
  if capped == 0 and tier ~= first then
    if a.above + 1 <= math.ceil(share * a.asked) then a.above, above = a.above + 1, a.share else capped = 2 end
  end
end
if capped > 0 then money, tier = cheap, first end
spent = spent + interval
a.idle_at, a.tokens, a.money = now + spent, a.tokens + prompt + completion, a.money + money
redis.call('ZADD', KEYS[2], whole(now + lasts), lease)
redis.call('HSET', KEYS[3], lease, string.format('[%.0f,%.0f,%.0f,%s,%.0f]', prompt, completion, money,
  cjson.encode(tier), above))
redis.call('EXPIRE', KEYS[2], TTL)
redis.call('EXPIRE', KEYS[3], TTL)
if KEYS[6] and not maker then
  maker = lease
  redis.call('SET', KEYS[6], lease, 'PX', held)
end
return answer(0, 0, capped, nil, maker)
""",
)

# KEYS  ... [, pushed]; ARGV  a MessagePack array: lease, whether answered above the first tier, lines, each an array of
# Line's fields. The lines are booked for a lease that is held still, or once for `pushed`. With a lease of "" only what
# expired is booked.
SETTLE: Final = script(
    words=1,
    text=OPENING
    + b"""
local lease, above, lines = unpack(cmsgpack.unpack(ARGV[1]))
local held = take(lease)
advance()
if held and held[5] >= 0 and held[5] == a.share and not above then a.above = a.above - 1 end
local first = KEYS[5] and redis.call('SET', KEYS[5], '', 'NX', 'EX', 86400)
if held or first then
  for _, line in ipairs(lines) do book(unpack(line)) end
end
save()
""",
)

# KEYS  leases; ARGV  us, leases. Those that did not end yet last so long from now on.
RENEW: Final = b"""
local clock = redis.call('TIME')
local till = string.format('%.0f', clock[1] * 1000000 + clock[2] + ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', till, ARGV[i]) end
"""

# KEYS  processes; ARGV  process, us after which one counts no more. -> how many there are
ANNOUNCE: Final = b"""
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf')
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('EXPIRE', KEYS[1], 86400)
return redis.call('ZCARD', KEYS[1])
"""

# KEYS  keys; ARGV  id, record. -> 1 if it is the first key and was kept
FIRST_KEY: Final = b"""
if redis.call('HLEN', KEYS[1]) > 0 then return 0 end
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""

# KEYS  turn, entry; ARGV  token, ms. -> {"", entry}, or {the token whose turn it is}
TAKE_TURN: Final = script(
    words=2,
    text=b"""
local entry = redis.call('GET', KEYS[2])
if entry then return {'', entry} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {holder} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {ARGV[1]}
""",
)

# KEYS  entry [, turn]; ARGV  value, ms, token. Remembers the value, and ends the turn if it is this token's.
REMEMBER: Final = script(
    words=3,
    text=b"""
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if KEYS[2] and redis.call('GET', KEYS[2]) == ARGV[3] then redis.call('DEL', KEYS[2]) end
""",
)

# KEYS  turn; ARGV  token, ms, what stands in its place for so long (0: nothing).
END_TURN: Final = script(
    words=3,
    text=b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
""",
)
