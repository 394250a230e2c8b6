"""Scoring a gateway's decisions, against a server that keeps to the contract of /v1/route."""

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.evals.prompts import Row, sets
from backends.evals.routing import COLUMNS, Asking, By, Decided, decide, report, run
from backends.evals.tasks import DataError

ROOT = Path(__file__).parents[3]
ROWS = [
    {"id": "a", "prompt": "easy", "weak_score": 1, "strong_score": 1, "label": 0},
    {"id": "b", "prompt": "hard", "weak_score": 0, "strong_score": 1, "label": 1},
    {"id": "c", "prompt": "odd", "weak_score": 0, "strong_score": 0, "label": 0},
    {"id": "d", "prompt": "hard too", "weak_score": 0, "strong_score": 1, "label": 1},
]
VERDICTS: dict[str, Any] = {
    "easy": None,  # a rule decided, nobody was asked
    "odd": {"label": None, "p_complex": None, "reason": "timeout"},
}
HARD = {"label": "complex", "p_complex": 0.9, "reason": "ok"}


class Deciding(BaseHTTPRequestHandler):
    """Hard prompts go to pro, "hard too" the first time only; the local score is the wrong way round; "refuse me" and a
    wrong key are refused."""

    asked: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        fine = self.path == "/v1/route" and self.headers["authorization"] == "Bearer k" and prompt != "refuse me"
        hard = prompt.startswith("hard") and (prompt != "hard too" or prompt not in self.asked)
        self.asked.add(prompt)
        route = {"tier": "pro" if hard else "flash", "rule": "r", "reason": "complex" if hard else "simple"}
        told = {"route": route, "verdict": VERDICTS.get(prompt, HARD), "facts": {}}
        told["score"] = None if prompt == "hard, unscored" else {"value": 0.3 - 0.2 * hard, "reasons": []}
        self.send_response(200 if fine else 403)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (named by http.server)
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    Deciding.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Deciding)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def table(gateway: str, tmp_path: Path, by: By, rows: list[dict[str, Any]], repeats: int = 1) -> list[list[str]]:
    with gzip.open(tmp_path / "tiny.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    lines = run([tmp_path], Asking(gateway, "k", by, "flash"), None, 2, repeats)
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines][1:]


def test_verdicts_are_scored_by_outcomes_and_labels(gateway: str, tmp_path: Path) -> None:
    line, mean = table(gateway, tmp_path, "p_complex", ROWS)
    name, decided, skill, share, lift, auroc, failed, _, alike, pays = line
    assert (name, decided, share, failed, alike) == ("tiny", "4 of 4", "0.500", "0.2500", "")
    assert (skill[:5], pays[:5], lift[:5], auroc[:5]) == ("1.000", "1.000", "0.500", "1.000")
    assert mean[0] == "mean of 1"
    assert mean[2].startswith("1.000")


def test_prompts_that_are_decided_otherwise_when_asked_again_are_told(gateway: str, tmp_path: Path) -> None:
    line = table(gateway, tmp_path, "p_complex", ROWS, repeats=3)[0]
    assert (line[2][:5], line[8]) == ("1.000", "0.750"), "the first decisions are scored; one of four moved later"


def test_the_local_score_is_scored_alone(gateway: str, tmp_path: Path) -> None:
    assert table(gateway, tmp_path, "score", ROWS)[0][2].startswith("-1.000")


def test_the_tier_stands_in_for_a_score_that_the_gateway_has_not(gateway: str) -> None:
    said = [decide(prompt, Asking(gateway, "k", "score", "flash")) for prompt in ("hard, unscored", "easy")]
    assert [one and one.rank for one in said] == [1.0, 0.3]


def test_prompts_that_are_refused_are_counted(gateway: str, tmp_path: Path) -> None:
    refused = {"id": "e", "prompt": "refuse me", "weak_score": 0, "strong_score": 1}
    assert table(gateway, tmp_path, "tier", [*ROWS, refused])[0][1] == "4 of 5"
    assert decide("easy", Asking(gateway, "wrong", "tier", "flash")) is None
    assert decide("easy", Asking("http://127.0.0.1:9", None, "tier", "flash")) is None


def test_a_prompt_is_counted_as_refused_where_no_http_is_spoken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        asking = Asking(f"http://127.0.0.1:{listening.getsockname()[1]}", None, "tier", "flash")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(decide, "easy", asking)
            with listening.accept()[0] as one:
                one.recv(65536)
                one.sendall(b"220 mail.example ESMTP\r\n")
            assert asked.result(20) is None


def row(gain: float | None = None, label: int | None = None) -> Row:
    return Row("r", "p", gain, None, None, label, "en")


def cells(*found: tuple[Row, list[Decided | None]]) -> list[str]:
    return [cell.strip() for cell in report("set", found).removeprefix("|").removesuffix("|").split("|")]


def test_a_row_counts_where_it_has_an_outcome_or_a_label() -> None:
    up, down = Decided(0.9, True, False, 0.0), Decided(0.1, False, False, 0.0)
    told = cells((row(1.0), [up]), (row(0.0), [down]), (row(label=1), [down]), (row(label=0), [up]), (row(), [up]))
    assert (told[1], told[3]) == ("5 of 5", "0.600")
    assert [told[at][:5] for at in (2, 4, 5, 9)] == ["1.000", "0.500", "0.000", "1.000"]


def test_what_nothing_is_known_of_is_left_empty(gateway: str, tmp_path: Path) -> None:
    down = Decided(0.1, False, False, 0.0)
    assert [cells((row(label=1), [down]))[at] for at in (2, 4, 8, 9)] == [""] * 4
    assert [cells((row(1.0), [down]))[at] for at in (4, 5)] == ["", ""], "nothing went upward"
    assert cells((row(), [None])) == ["set", "1", "nothing was decided"]
    (line,) = table(gateway, tmp_path, "score", [{"id": "a", "prompt": "easy", "label": 0}])
    assert line[:3] == ["tiny", "1 of 1", ""], "and there is no mean over sets"
    (alike,) = table(gateway, tmp_path, "score", ROWS[:1] * 2)
    assert alike[2] == "nan (nan to nan)", "where no gain is greater there is no order"


def test_each_line_of_the_table_has_a_cell_for_each_column(gateway: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = "\n".join(run([tmp_path], Asking(gateway, "k", "tier", "flash"), None, 2)).splitlines()
    assert [line.count("|") for line in lines] == [len(COLUMNS) + 1] * 4


def test_a_prompt_that_is_refused_when_it_is_asked_again_was_not_decided_alike() -> None:
    down = Decided(0.1, False, False, 0.0)
    assert cells((row(), [down, None]), (row(), [down, down]), (row(), [None, down]))[8] == "0.500"


def test_the_times_are_those_that_half_and_one_of_twenty_reach() -> None:
    found = [(row(), [Decided(0.1, False, False, at / 1000)]) for at in range(100)]
    assert report("set", found).split("|")[8].strip() == "50.0 / 95.0"


@pytest.mark.parametrize("key", ["wrong", "k"])
def test_a_gateway_that_decides_nothing_ends_the_command_with_why(gateway: str, tmp_path: Path, key: str) -> None:
    (tmp_path / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "backends.evals.routing", str(tmp_path), "--gateway", gateway, "--key", key]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "decides nothing: HTTP Error 403" in ended.stderr) == ((0, False), (1, True))[key != "k"]


def test_prompts_that_cannot_be_read_are_told_in_one_line(gateway: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    command = [sys.executable, "-m", "backends.evals.routing", str(odd), "--gateway", gateway, "--key", "k"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"routing: [Errno 2] No such file or directory: '{odd}'\n")
    for text, why in (("{", "odd.jsonl:1: "), ('{"id": "a"}', "has id and prompt: {'id': 'a'}")):
        odd.write_text(text)
        with pytest.raises(DataError, match=re.escape(why)):
            list(sets([odd]))


def test_sets_are_read_plain_and_packed_by_name(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as out:
        out.write(json.dumps({"id": "x", "prompt": "p", "label": 1, "lang": "de"}) + "\n\n")
    found = {name: rows[0] for name, rows in sets([tmp_path])}
    assert (found["plain"].gain, found["packed"].gain) == (0, None)
    assert (found["plain"].language, found["packed"].language, found["packed"].label) == ("en", "de", 1)
