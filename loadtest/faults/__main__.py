"""Figures of faults, in full; minutes. Without a name: all."""

import argparse

from loadtest.faults import (
    arithmetic,
    bodies,
    deadlines,
    drain,
    fidelity,
    freeze,
    isolation,
    leavers,
    limits,
    money,
    overload,
    reload,
    replicas,
    revocation,
    slow,
    truth,
)

SCENARIOS = {
    "leavers": lambda: leavers.report(rounds=300),
    "limits": lambda: limits.report(requests=5000, limit=60),
    "money": lambda: money.report(streams=500, covered=300),
    "isolation": lambda: isolation.report(callers=50, prompts=200, operations=100_000),
    "overload": lambda: overload.report(seconds=30),
    "bodies": lambda: bodies.report(1 << 20, 4 << 20, 32 << 20),
    "arithmetic": lambda: arithmetic.report(seconds=30),
    "replicas": lambda: replicas.report(seconds=20, rate=100),
    "deadlines": lambda: deadlines.report(rounds=1000),
    "revocation": lambda: revocation.report(rounds=20),
    "freeze": lambda: freeze.report(seconds=30, rate=100),
    "fidelity": lambda: fidelity.report(bodies=2000, streams=60),
    "truth": lambda: truth.report(count=500),
    "slow": lambda: slow.report(count=500, asked=500),
    "reload": lambda: reload.report(writes=1000, seconds=60),
    "drain": lambda: drain.report(count=200),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.faults", description=__doc__)
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    wanted = parser.parse_args().scenario
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        parser.error(f"no scenario is named {unknown[0]}; there are {', '.join(SCENARIOS)}")
    for name in wanted or SCENARIOS:
        SCENARIOS[name]()


if __name__ == "__main__":
    main()
