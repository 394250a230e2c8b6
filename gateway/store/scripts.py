"""Which decisions does the server of the store take atomically?   One Lua script each, by the server's clock."""

import hashlib
from typing import Final, NamedTuple

from gateway.store.window import SET_TILL


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


MOST = 5  # keys that a script may be given
LOCK = b"\0"  # begins what stands in place of a value while its maker has the lock; no value begins so

# Both decisions begin with the same steps: read the account, drain its bucket, turn its window, book what expired
# leases held. KEYS  account, leases, ledger of one caller. Times are whole microseconds and money is nano-dollars, all
# below 2^53: exact in Lua. `level` is tokens * 60,000,000, draining by `rate` each microsecond.
#   account  a hash. Its field `state` is the numbers NAMES, packed: idle_at is GCRA's theoretical arrival time, before
#            `due` no lease expires, at `till` the budget's window of `length` ends. A stored time further ahead than
#            the window is a clock that went back, or a limit that changed: it is cut to the window. Its other fields
#            are leases, with what each holds: prompt, completion, money, the window in which it counts as above the
#            first tier or -1, packed; and the tier.
#   leases   a sorted set of leases by deadline
#   ledger   a hash: day since 1970/kind/estimated/tier/measure -> sum; one that 64 bits cannot hold stays as it is
# What is not of this form counts as nothing: one caller's must not stop the script, and with it the store for all.
# All of them outlive cache entries by far, so that `volatile-ttl` evicts entries first; each is given its TTL when it
# is made, and on each day.
#
# To a server a number in digits, or a function that shares ten variables, costs as much as a command: so numbers are
# packed, steps that both scripts take are texts, and each script has one end.
NAMES = b"idle_at tokens money level at rate spent till length asked above share day due".split()
SAVED, ZEROS = b", ".join(NAMES), b", ".join(b"0" for _ in NAMES)
OPENING: Final = b"""
local UNIT, TTL, KEPT, NEVER, LONGEST = 60000000, 34646400, 400, 8e15, 2678400000000
local FORM, SIZE, HELD, HOLDS = '<%b', %d, '<dddd', 32
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local today = math.floor(clock[1] / 86400)
local %b = %b
if state and #state == SIZE then %b = struct.unpack(FORM, state) end
local sum = %b
if not (sum >= 0 and sum < 9e18) then %b = %b end
local new = day ~= today
""" % (b"d" * len(NAMES), 8 * len(NAMES), SAVED, ZEROS, SAVED, b" + ".join(NAMES), SAVED, ZEROS)
TAKE: Final = b"""
redis.call('ZREM', KEYS[2], lease)
if held then redis.call('HDEL', KEYS[1], lease) end
local prompt, completion, cost, counted
if held and #held >= HOLDS then
  prompt, completion, cost, counted = struct.unpack(HELD, held)
  tokens, money = math.max(0, tokens - prompt - completion), math.max(0, money - cost)
end
"""
# `window` takes the place of `length`, unless it is none: what was spent in a window that runs counts in one of another
# length, too, and goes on counting while no limit is set.
# `lines` are booked. No server writes a number above 2^52 in digits alone.
ADVANCE: Final = (
    b"""
level = rate > 0 and math.max(0, level - math.max(0, now - at) * rate) or 0
at = now
local runs = now < till and till - now <= (length > 0 and length or LONGEST)
if window == 0 then window = length end
if window ~= length or length ~= 0 and not runs then
  if not runs then spent = 0 end
  length = window
  """
    + SET_TILL
    + b"""
end
if new then
  day = today
  for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
    if (tonumber(string.match(field, '^%d+')) or 0) < day - KEPT then redis.call('HDEL', KEYS[3], field) end
  end
end
if now >= due then
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
    local held = redis.call('HGET', KEYS[1], lease)
    """
    + TAKE
    + b"""
    if counted then
      lines[#lines + 1] = {string.sub(held, HOLDS + 1), 'answer', true, prompt, 0, completion, cost, 1}
    end
  end
  due = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]) or NEVER
end
for _, line in ipairs(lines) do
  local tier, kind, estimated, prompt, cached, completion, cost, requests = unpack(line)
  local head = string.format('%d/%s/%d/%s/', day, kind, estimated and 1 or 0, tier)
  local sums = {'requests', requests, 'prompt', prompt, 'cached', cached, 'completion', completion, 'money', cost}
  for i = 1, 10, 2 do
    local more = sums[i + 1]
    if more > 4e15 then more = string.format('%.0f', more) end
    local sum = more ~= 0 and redis.pcall('HINCRBY', KEYS[3], head .. sums[i], more)
    if i == 1 and sum == more then redis.call('EXPIRE', KEYS[3], TTL) end
  end
  if kind == 'answer' and rate > 0 then level = level + (prompt + completion) * UNIT end
  if kind == 'answer' and length ~= 0 then spent = spent + cost end
end
"""
)

# KEYS  ... [, entry]; ARGV  MessagePack values behind each other. The limits: us of a lease, requests per minute,
# interval us, concurrency, tokens per minute or 0, budget or -1, its window us (0: none, -1: a month), whether it
# degrades, share or -1, its window us, ms for which a lock is the lease's; and what is asked for: lease, and the
# bound's prompt, completion, money, tier, money on the first tier, first tier.
# -> {a member of REFUSALS, us until idle, us to wait, tokens, money, a member of CAPS, entry or nil, whose lock or nil}
ADMIT: Final = script(
    words=1,
    text=b"local state = redis.call('HGET', KEYS[1], 'state')"
    + OPENING
    + b"""
local lasts, requests, interval, concurrency, limit, budget, window, degrades, part, period, lock, lease, prompt,
  completion, cost, tier, cheap, first = cmsgpack.unpack(ARGV[1])
local lines = {}
if limit > 0 then rate = limit end
"""
    + ADVANCE
    + b"""
if part >= 0 then
  local current = math.floor(now / period)
  if current ~= share then share, asked, above = current, 0, 0 end
end
local most = interval * requests
idle_at = math.min(idle_at, now + most)
local queue = math.max(idle_at - now, 0)
local over = level + (tokens + math.min(prompt + completion, rate) - rate) * UNIT
local used, verdict, wait, capped = spent + money, 0, 0, 0
local entry, maker, leases
if queue + interval > most then
  verdict = 1
else
  entry = KEYS[4] and redis.call('GET', KEYS[4])
  if entry and string.byte(entry) == 0 then entry, maker = nil, string.sub(entry, 2) end
  leases = entry or redis.call('ZCARD', KEYS[2])
end
if verdict > 0 or entry then
elseif leases >= concurrency then
  verdict = 2
elseif limit > 0 and over > 0 then
  verdict, wait = 3, over / rate
elseif budget >= 0 and used + cost > budget then
  capped = 1
  if not degrades or used + cheap > budget then verdict, wait, capped = 4, till - now, 0 end
end
if verdict == 0 then
  queue = queue + interval
  idle_at = now + queue
end
if verdict > 0 or entry then
  redis.call('HSET', KEYS[1], 'state', struct.pack(FORM, SAVED))
else
  local counted = -1
  if part >= 0 then
    asked = asked + 1
    if capped == 0 and tier ~= first then
      if above + 1 <= math.ceil(part * asked) then above, counted = above + 1, share else capped = 2 end
    end
  end
  if capped > 0 then cost, tier = cheap, first end
  tokens, money, due = tokens + prompt + completion, money + cost, math.min(due, now + lasts)
  redis.call('HSET', KEYS[1], 'state', struct.pack(FORM, SAVED), lease,
    struct.pack(HELD, prompt, completion, cost, counted) .. tier)
  redis.call('ZADD', KEYS[2], now + lasts, lease)
  if new or leases == 0 then redis.call('EXPIRE', KEYS[2], TTL) end
  if KEYS[4] and not maker then
    maker = lease
    redis.call('SET', KEYS[4], '\\0' .. lease, 'PX', lock)
  end
end
if new then redis.call('EXPIRE', KEYS[1], TTL) end
return {verdict, queue, math.ceil(wait), math.ceil(level / UNIT) + tokens, spent + money, capped, entry or false,
  verdict == 0 and maker or false}
""".replace(b"SAVED", SAVED),
)

# KEYS  ... [, pushed or entry]; ARGV  MessagePack values behind each other: lease, whether answered above the first
# tier, lines, each an array of Line's fields; for an entry its value and ms. The lines are booked for a lease that is
# held still, or once for `pushed`. With a lease of "" only what expired is booked.
SETTLE: Final = script(
    words=1,
    text=b"""
local lease, higher, lines = cmsgpack.unpack(ARGV[1])
local state, held = unpack(redis.call('HMGET', KEYS[1], 'state', lease))
"""
    + OPENING
    + TAKE
    + b"""
local pushed = KEYS[4] and not ARGV[2] and redis.call('SET', KEYS[4], '', 'NX', 'EX', 86400)
if not (counted or pushed) then lines = {} end
local window = length
"""
    + ADVANCE
    + b"""
if counted and counted >= 0 and counted == share and not higher then above = math.max(0, above - 1) end
redis.call('HSET', KEYS[1], 'state', struct.pack(FORM, SAVED))
if new then redis.call('EXPIRE', KEYS[1], TTL) end
if ARGV[2] then redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3]) end
""".replace(b"SAVED", SAVED),
)
SETTLE_AND_REMEMBER: Final = script(SETTLE.text, words=3)

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

# KEYS  key records; ARGV  id, record as it was, record. -> whether it is kept
CHANGE_KEY: Final = b"""
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

# KEYS  entry; ARGV  token, ms. -> {"", entry}, or {the token whose lock it is}
TAKE_LOCK: Final = script(
    words=2,
    text=b"""
local entry = redis.call('GET', KEYS[1])
if entry and string.byte(entry) ~= 0 then return {'', entry} end
if entry and entry ~= '\\0' .. ARGV[1] then return {string.sub(entry, 2)} end
redis.call('SET', KEYS[1], '\\0' .. ARGV[1], 'PX', ARGV[2])
return {ARGV[1]}
""",
)

# KEYS  entry; ARGV  value, ms. The lock for it ends.
REMEMBER: Final = script(words=2, text=b"redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")

# KEYS  entry; ARGV  token, ms, what stands in the lock's place for so long (0: nothing).
FREE_LOCK: Final = script(
    words=3,
    text=b"""
if redis.call('GET', KEYS[1]) ~= '\\0' .. ARGV[1] then return end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], '\\0' .. ARGV[3], 'PX', ARGV[2])
""",
)
