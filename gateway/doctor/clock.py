"""Do the clocks agree?   Keys expire and budgets begin anew by them."""

from collections.abc import Sequence

from gateway.doctor.finding import Finding, ok, warning

MOST = 2.0  # seconds; a Date header alone is exact to one


def clock(ahead: Sequence[float | None]) -> list[Finding]:
    """`ahead`: by how many seconds other machines' clocks are ahead of ours; None: not known."""
    known = [seconds for seconds in ahead if seconds is not None]
    if not known:
        return []
    worst = max(known, key=abs)
    if abs(worst) <= MOST:
        return [ok("clock", f"as the others' ({len(known)} asked)")]
    side = "behind" if worst > 0 else "ahead of"
    told = (
        f"this machine is {abs(worst):.0f} s {side} another one: keys expire and budgets begin anew at the wrong time"
    )
    return [warning("clock", told, "synchronise it: timedatectl set-ntp true, or run chrony")]
