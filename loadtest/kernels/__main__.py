"""The commands; what they do stands in the package's docstring."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtest.kernels.parts import Book, Ended, Line, at_once, collected
from loadtest.kernels.plan import PARTS, TINY_PARTS
from loadtest.kernels.report import page

MINUTES = 9.0  # of a command


def options(words: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m loadtest.kernels", description="The GPU benchmark, in three commands.")
    verbs = p.add_subparsers(dest="verb", required=True)
    for name, told in (("grid", "ceilings, correctness, times"), ("quality", "policies"), ("serve", "TTFT, TPOT")):
        verb = verbs.add_parser(name, help=told)
        verb.add_argument("--out", type=Path, required=True, help="folder for NAME.json, NAME.md and NAME.log")
        verb.add_argument("--minutes", type=float, default=MINUTES, help="after which it has ended, whatever is open")
        verb.add_argument("--tiny", action="store_true", help="the same code on tiny shapes; no figure of it counts")
        verb.add_argument("--rivals", type=Path, help="folder with vLLM's fused_moe.py, where vLLM is not installed")
    verbs.add_parser("table", help="one page of all results").add_argument("folder", type=Path)
    part = verbs.add_parser("part", help="what the commands start")
    part.add_argument("name")
    part.add_argument("file", type=Path)
    part.add_argument("seconds", type=float)
    part.add_argument("--tiny", action="store_true")
    part.add_argument("--rivals", type=Path)
    return p.parse_args(words)


def command(asked: argparse.Namespace) -> int:
    """Runs the parts one after the other and writes what there is after each. 1: a part did not run to its end."""
    asked.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + asked.minutes * 60
    words = ["--tiny"] * asked.tiny + (["--rivals", str(asked.rivals)] if asked.rivals else [])
    ended: list[Ended] = []
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for together in (TINY_PARTS if asked.tiny else PARTS)[asked.verb]:
            for one, found in at_once(together, end - time.monotonic(), words, Path(folder)):
                ended, lines = [*ended, one], [*lines, *found]
                print(f"{one.name}: {one.state} in {one.seconds:.0f} s, {len(found)} lines. {one.note}", flush=True)
            kept(asked, collected(asked.verb, ended, lines, asked.tiny), Path(folder))
    return 0 if all(one.state == "ran" for one in ended) else 1


def kept(asked: argparse.Namespace, found: dict[str, Any], logs: Path) -> None:
    """Writes the three files of a command."""
    path = asked.out / asked.verb
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(page({asked.verb: found}))
    said = "".join(f"== {log.stem}\n{log.read_text(errors='replace')}" for log in sorted(logs.glob("*.log")))
    path.with_suffix(".log").write_text(said)


def part(asked: argparse.Namespace) -> None:
    """One part, in a process of its own. Where there is no GPU, Triton's kernels are interpreted."""
    import torch  # the parent does without

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before anything defines a kernel
    from loadtest.kernels import child

    with asked.file.open("a") as file:
        book = Book(file, asked.seconds)
        book.write("env", python=platform.python_version(), cpus=os.cpu_count(), **child.environment())
        child.work(book, asked.name, asked.tiny, asked.rivals)


def table(folder: Path) -> None:
    """Prints one page of all results in a folder. Raises SystemExit where there are none."""
    names = [name for name in PARTS if (folder / f"{name}.json").exists()]
    if not names:
        raise SystemExit(f"{folder} has no result: {', '.join(f'{name}.json' for name in PARTS)}")
    print(page({name: json.loads((folder / f"{name}.json").read_text()) for name in names}), end="")


def main() -> int:
    asked = options(sys.argv[1:])
    if asked.verb == "part":
        part(asked)
    elif asked.verb == "table":
        table(asked.folder)
    else:
        return command(asked)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
