import os
import subprocess
import sys
from pathlib import Path

from gateway.memory import allowed

FREED = """
import sys
from gateway.memory import give_back_large
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
if sys.argv[1:]:
    give_back_large()
before, small = resident(), []
for _ in range(2):
    large = [(b"x" * 200_000, small.append(b"x" * 1000)) for _ in range(100)]
    del large
print(resident() - before)
"""


def test_a_container_s_limit_counts_where_it_is_below_what_the_machine_has(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    second, first = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    assert allowed([second, first]) == machine
    second.write_text("max\n")
    first.write_text("9223372036854771712\n")  # none, as the first version of cgroups says it
    assert allowed([second, first]) == machine
    second.write_text("2097152\n")
    assert allowed([second, first]) == 2 << 20


def test_large_pieces_go_back_to_the_system_although_small_ones_lie_between() -> None:
    def left(*arguments: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FREED, *arguments]))

    assert left("given back") < 2 << 20 < left()
