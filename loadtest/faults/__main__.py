"""python -m loadtest.faults [leavers|limits|freeze|drain ...]   Figures of faults, in full; minutes."""

import sys

from loadtest.faults import drain, freeze, leavers, limits

SCENARIOS = {
    "leavers": lambda: leavers.report(rounds=300),
    "limits": lambda: limits.report(requests=5000, limit=60),
    "freeze": lambda: freeze.report(seconds=30, rate=100),
    "drain": lambda: drain.report(count=200),
}


def main() -> None:
    for name in sys.argv[1:] or SCENARIOS:
        SCENARIOS[name]()


if __name__ == "__main__":
    main()
