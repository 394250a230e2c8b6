"""python -m loadtest.faults [leavers|limits|money|isolation|freeze ...]   Figures of faults, in full; minutes."""

import sys

from loadtest.faults import freeze, isolation, leavers, limits, money

SCENARIOS = {
    "leavers": lambda: leavers.report(rounds=300),
    "limits": lambda: limits.report(requests=5000, limit=60),
    "money": lambda: money.report(streams=500, covered=300),
    "isolation": lambda: isolation.report(callers=50, prompts=200, operations=100_000),
    "freeze": lambda: freeze.report(seconds=30, rate=100),
}


def main() -> None:
    for name in sys.argv[1:] or SCENARIOS:
        SCENARIOS[name]()


if __name__ == "__main__":
    main()
