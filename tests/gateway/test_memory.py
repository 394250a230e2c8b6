import os
from pathlib import Path

from gateway.memory import allowed


def test_a_container_s_limit_counts_where_it_is_below_what_the_machine_has(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    second, first = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    assert allowed([second, first]) == machine
    second.write_text("max\n")
    first.write_text("9223372036854771712\n")  # none, as the first version of cgroups says it
    assert allowed([second, first]) == machine
    second.write_text("2097152\n")
    assert allowed([second, first]) == 2 << 20
