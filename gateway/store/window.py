"""When does a budget's window end, and which day is it?   In Lua for the server's scripts, in Python for all else."""

import calendar
import time
from typing import Final, Literal

Window = float | Literal["month"]  # seconds, or the calendar's month
DAY = 86_400  # seconds
MONTH = -1  # in place of a length
MONDAY = 259_200_000_000  # microseconds from a Monday to 1970; windows begin at multiples of their length since


def length_of(window: Window) -> int:
    """Microseconds, or MONTH."""
    return MONTH if window == "month" else int(window * 1e6)


def end_of(length: int, now: int) -> int:
    """Where the window ends that runs; microseconds since 1970."""
    if length != MONTH:
        return now - (now + MONDAY) % length + length
    year, month, *_ = time.gmtime(now // 1_000_000)
    return calendar.timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0)) * 1_000_000


def date_of(day: int) -> str:
    """Of so many days since 1970: YYYY-MM-DD."""
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY))


def resets(window: Window) -> int:
    """When the window ends that runs by this machine's clock, in Unix seconds, rounded up."""
    return -(-end_of(length_of(window), int(time.time() * 1e6)) // 1_000_000)


# `end_of` in Lua: sets `till` by `now` and `length` (0: no window). Here a year begins in March, with month 0, so that
# its leap day is its last one; 719,468 days of such years lie before 1970.
SET_TILL: Final = (
    b"""
if length == 0 then
  till = 0
elseif length > 0 then
  till = now - (now + %d) %% length + length
else
  local month = math.floor((now / 86400000000 + 719468) / 30.436875)
  repeat
    local year = math.floor(month / 12)
    local days = 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    till = (days + math.floor((153 * (month %% 12) + 2) / 5) - 719468) * 86400000000
    month = month + 1
  until till > now
end
"""
    % MONDAY
)
