"""Does every command in the pages work, and does the README show what really comes?"""

import contextlib
import json
import re
import secrets
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from gateway import admin_policy, body, fields, protocol, schemas, standing
from gateway.cache import entry
from gateway.cli import app
from gateway.policy import load, load_policy
from gateway.settings import Settings
from gateway.store import memory
from gateway.upstream import retry_budget
from loadtest.servers import Sim, free_port, running, sim, until, valkey
from tests.tiers import merged

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "policies/README.md", "gateway/README.md")
OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md", "k8s/README.md", "backends/README.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPANS = re.compile(r"`(tiergate [^`]+)`")
STAYS = {"serve", "demo", "sim"}  # commands that do not end by themselves
ADMIN, KEY = secrets.token_hex(32), secrets.token_hex(16)
CLI = typer.main.get_command(app)


def commands(page: str) -> list[str]:
    """The lines of a page's plain blocks."""
    return [line for block in blocks(page, "") for line in block.splitlines() if line]


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((ROOT / page).read_text()) if kind == language]


@dataclass
class House:
    """A gateway that runs, and a folder in which the pages' commands do."""

    url: str
    place: Path
    env: dict[str, str]

    def run(self, line: str) -> Result:
        words = shlex.split(Template(line).safe_substitute(self.env), comments=True)[1:]
        return CliRunner().invoke(app, words, env=self.env)

    def names(self, line: str) -> str:
        """The line with what stands for names in place of their examples."""
        line = line.replace("policies/", f"{ROOT}/policies/")
        policy = json.loads(self.ask("GET", "/admin/policy"))
        line = line.replace("DIGEST", policy["revisions"][-1]["digest"]).replace("--records FILE", "--records records")
        if re.search(r"\bID\b", line):
            keys = json.loads(self.ask("GET", "/admin/keys"))
            line = re.sub(r"\bID\b", keys[-1]["id"], line)
        return line

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        told = {"authorization": f"Bearer {ADMIN}", **headers}
        request = urllib.request.Request(self.url + path, body, told, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: bytes = answer.read()
            return found


@pytest.fixture(scope="module")
def house(flash_server: Sim, pro_server: Sim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    place = tmp_path_factory.mktemp("house")
    text = (ROOT / "policies" / "default.yaml").read_text()
    for tier, server in (("Flash", flash_server), ("Pro", pro_server)):
        text = text.replace(f"deepseek-ai/DeepSeek-V4-{tier}", server.model)
    for name in ("my.yaml", "a.yaml"):
        (place / name).write_text(text)
    (place / "b.yaml").write_text(text.replace("threshold: 0.5", "threshold: 0.4"))
    env = {"ADMIN": ADMIN, "KEY": KEY, "FLASH_URL": flash_server.url, "PRO_URL": pro_server.url, "NO_COLOR": "1"}
    settings = {"ADMIN_KEY": ADMIN, "API_KEY": KEY, "RECORDS": str(place / "records"), "POLICY": str(place / "my.yaml")}
    with contextlib.ExitStack() as stack:
        settings["REDIS_URL"] = stack.enter_context(valkey())  # one that no other test empties
        url, _ = stack.enter_context(running(place / "my.yaml", (flash_server, pro_server), **settings))
        env |= {"GATEWAY": url, "GATEWAY_URL": url, "GATEWAY_PORT": url.rpartition(":")[2]}
        env |= {f"GATEWAY_{name}": value for name, value in settings.items()}
        stack.enter_context(contextlib.chdir(place))
        found = House(url, place, env)
        answered(found)
        yield found


def answered(house: House) -> None:
    """One answer, records of forty that were judged, and a second revision of the policy."""
    told = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "x-request-id": "r-1"}
    asked = {"messages": [{"role": "user", "content": "What is the capital of Australia, if I may ask?"}]}
    house.ask("POST", "/v1/chat/completions", json.dumps(asked).encode(), **told)
    records = house.place / "records"
    until(lambda: records.is_file() and records.read_text().endswith("\n"))
    one = json.loads(records.read_text())
    outcome = {"quality": 0.9, "tiers": {"flash": 0.9, "pro": 1.0}}
    lines = [json.dumps({**one, "id": f"r-{at}", "outcome": outcome}) for at in range(40)]
    records.write_text("\n".join(lines))
    house.ask("POST", "/admin/keys", b'{"name": "my-app"}', **told | {"authorization": f"Bearer {ADMIN}"})
    file = house.place / "my.yaml"
    file.write_text(file.read_text() + "\n# changed\n")
    house.ask("POST", "/admin/policy/reload")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_program_works_as_the_page_has_it(house: House, page: str) -> None:
    lines = [line for line in commands(page) if line.startswith("tiergate ")]
    for line in lines:
        if line.split()[1] in STAYS:
            parsed(line)
            continue
        found = house.run(house.names(line))
        assert found.exit_code == 0, f"{line}: {found.stdout} {found.stderr} {found.exception!r}"
    assert lines


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_in_the_text_exists_with_its_options(page: str) -> None:
    for line in SPANS.findall((ROOT / page).read_text()):
        parsed(line)


def parsed(line: str) -> None:
    """Raises what click does for a command or an option that is not there; arguments may be left out in a text."""
    command: Any = CLI
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in {"...", "|", ">"}]
    while words and hasattr(command, "get_command"):
        if words[0] not in command.list_commands(None):
            break
        _, command, words = command.resolve_command(None, words)
    assert command is not CLI or all(word.startswith("-") for word in words), line
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options | {"--help", "--install-completion"}, line


@pytest.mark.parametrize("page", PAGES)
def test_every_request_is_answered_as_the_page_says(house: House, page: str) -> None:
    for line in commands(page):
        if line.startswith("curl "):
            curl(house, line)


def curl(house: House, line: str) -> None:
    """What curl would send."""
    words = iter(shlex.split(Template(house.names(line)).safe_substitute(house.env), comments=True)[1:])
    method, url, body, headers = "GET", "", None, {}
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name.lower()] = value
        elif word == "-X":
            method = next(words)
        elif word in {"--json", "--data-binary"}:
            said = next(words)
            body = Path(said[1:]).read_bytes() if said.startswith("@") else said.replace('"..."', '"r-1"').encode()
            headers |= {"content-type": "application/json"} if word == "--json" else {}
            method = "POST" if method == "GET" else method
        else:
            url = word
    house.ask(method, url.removeprefix(house.url), body, **headers)


def snippets() -> list[str]:
    """What the pages show of a policy, in blocks and within a line; but for what needs files that none ships."""
    shown = [text for page in PAGES for text in blocks(page, "yaml")]
    for page in PAGES:
        shown += re.findall(r"`((?:sessions|record|triage|when): \{[^`]*\})`", (ROOT / page).read_text())
    return [text for text in shown if "FOLDER" not in text]


@pytest.mark.parametrize("snippet", snippets())
def test_what_a_page_shows_of_a_policy_fits_the_one_that_ships(snippet: str, tmp_path: Path) -> None:
    for file in (ROOT / "policies").glob("*.yaml"):
        shutil.copy(file, tmp_path)
    policy, shown = yaml.safe_load((tmp_path / "default.yaml").read_text()), yaml.safe_load(snippet)
    if "when" in shown:
        shown = {"sessions": {}, "rules": [{"id": "shown", "route": "flash", **shown}, *policy["rules"]]}
    (tmp_path / "default.yaml").write_text(yaml.safe_dump(merged(policy, shown), sort_keys=False))
    load_policy(tmp_path / "default.yaml", {})


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {line.split()[1] for page in PAGES for line in commands(page) if line.startswith("make ")}
    for page in (*PAGES, *OTHERS):
        named |= set(re.findall(r"`make ([\w-]+)", (ROOT / page).read_text()))
    assert {"run", "bench", "lock"} <= named
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_what_a_page_points_to_is_there(page: str) -> None:
    """Links, and sections that are named behind their page."""
    text = (ROOT / page).read_text()
    for file, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
        aim = ((ROOT / page).parent / file) if file else ROOT / page
        assert aim.is_file(), file
        assert not anchor or anchor in {re.sub(r"[^\w-]", "", one.lower().replace(" ", "-")) for one in titles(aim)}
    for file, title in re.findall(r'`([\w/]+\.md)`, "([^"]+)"', text):
        assert " ".join(title.split()) in titles(ROOT / file)


def titles(page: Path) -> list[str]:
    return re.findall(r"^##+ (.+)$", page.read_text(), re.MULTILINE)


def test_a_set_up_that_came_without_pip_is_made_again(tmp_path: Path) -> None:
    """Debian's Python without python3-venv leaves one."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    told = subprocess.run(["make", "--dry-run", "install"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "-m venv .venv\n" in told.stdout


def test_every_setting_has_its_row_and_no_other() -> None:
    settings = (ROOT / "gateway" / "README.md").read_text().partition("## Settings")[2]
    rows = [line.split("|")[1] for line in settings.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"GATEWAY_\w+", " ".join(rows)))
    assert named == {f"GATEWAY_{name.upper()}" for name in Settings.model_fields}


FIXED = {
    "a request's head": (protocol.MAX_HEAD >> 10, protocol.MAX_FIELDS, 431),
    "one connection": (protocol.MAX_WAITING, 400),
    "a body's contents": (body.MAX_VALUES, fields.MAX_MESSAGES, fields.MAX_TOOLS, body.MAX_MEMBERS, 400),
    "a member": (fields.MAX_OPTION >> 10, fields.MAX_LIST >> 10, 400),
    "patterns of schemas (`pattern`, `patternProperties`, `structured_outputs.regex`)": (schemas.LONGEST, 400),
    "other schemas that hold up all": (schemas.DEEPEST, schemas.MANY, schemas.WIDEST, schemas.VALUES, 400),
    "a request's work": (fields.MAX_CHOICES, fields.MAX_PROMPTS, fields.MAX_TOKENS, 400),
    "an answer that is remembered": (entry.LONGEST >> 20, memory.CACHE_BYTES >> 20),
    "a policy": (load.MAX_DEPTH, load.MAX_NODES, admin_policy.LONGEST >> 20),
    "retries": (1 / retry_budget.RATIO, 1 / retry_budget.TRICKLE),
}


def test_limits_without_a_setting_are_the_code_s() -> None:
    table = (ROOT / "gateway" / "README.md").read_text().partition("## Limits without a setting")[2]
    rows = [line.partition("|")[2].partition("|") for line in table.splitlines() if line.startswith("| ")][1:]
    told = {of.strip(): tuple(int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", text)) for of, _, text in rows}
    assert told == FIXED


def test_every_code_of_a_refusal_has_its_row_and_no_other() -> None:
    told = (ROOT / "gateway" / "README.md").read_text().partition("## What a refused caller")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in told.splitlines() if line.startswith("| ")][1:]
    source = "".join(file.read_text() for file in (ROOT / "gateway").rglob("*.py"))
    given = set(re.findall(r'\bcode ?= ?"(\w+)"', source)) | set(standing.CODES.values())
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) - {"param"} == given


def sessions() -> list[tuple[str, str]]:
    """Each command of the README's console blocks with the lines that follow it."""
    parts = [
        part
        for block in blocks("README.md", "console")
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)
        if part
    ]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


@contextlib.contextmanager
def broken() -> Iterator[dict[str, str]]:
    """Flash serves another model than the policy names, Pro is not there."""
    with sim("flash", model="V4-Flash") as flash:
        yield {"FLASH_URL": flash.url, "PRO_URL": f"http://127.0.0.1:{free_port()}"}


def masked(text: str) -> list[str]:
    text = re.sub(r"\([0-9a-f]{12}\)", "(digest)", text)
    text = re.sub(r"127\.0\.0\.1:(?!6390)\d+|'127\.0\.0\.1', \d+", "HERE", text)
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize(("line", "shown"), sessions())
def test_the_readme_shows_what_really_comes(line: str, shown: str) -> None:
    """Ports and digests are this run's own."""
    words = shlex.split(line)
    said = dict(word.split("=", 1) for word in words[: words.index("tiergate")])
    with broken() as env:
        env |= {"GATEWAY_PORT": str(free_port()), "NO_COLOR": "1", "COLUMNS": "120", **said}
        found = CliRunner().invoke(app, words[words.index("tiergate") + 1 :], env=env)
    told = found.stdout.replace(env["FLASH_URL"], "http://flash:8000").replace(env["PRO_URL"], "http://pro:8000")
    assert masked(told) == masked(shown), found.stdout
