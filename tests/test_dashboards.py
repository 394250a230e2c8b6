"""Do boards and alerts ask for what is there, and do alerts speak when they should?"""

import asyncio
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtest.servers import Sim
from tests.gateway.serving import COMPLEX, SIMPLE, body, eventually, gateway
from tests.gateway.test_protocol import said
from tests.tiers import JSON, policy_for, policy_text

FOLDER = Path(__file__).parent.parent / "k8s" / "components" / "dashboards"
BOARDS: dict[str, JSON] = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
RULES: list[JSON] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]
PROMTOOL = shutil.which("promtool")
SELECTOR = re.compile(r"((?:gateway_|gen_ai_server_|gen_ai_client_|vllm:)[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
BY = re.compile(r"by \(([^)]*)\)")
SCRAPED = {"instance", "job", "le"}  # labels that Prometheus or a histogram brings
# What the board of Envoy AI Gateway asks for (examples/monitoring in its repository).
ENVOY = (
    "gen_ai_server_request_duration_seconds_count{error_type,gen_ai_original_model,gen_ai_response_model,gen_ai_provider_name}",
    "gen_ai_server_request_duration_seconds_bucket{le}",
    "gen_ai_server_time_to_first_token_seconds_bucket{le}",
    "gen_ai_server_time_per_output_token_seconds_bucket{le}",
    "gen_ai_client_token_usage_sum{gen_ai_token_type}",
)
Series = dict[str, set[str]]  # label names by sample name
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())


class Query(NamedTuple):
    """Where it stands, what it asks, and the labels that its words name."""

    place: str
    text: str
    told: set[str]


def queries() -> Iterator[Query]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                yield Query(f"{name}: {panel['title']}", target["expr"], told)
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked
                yield Query(f"{name}: {variable['name']}", f"max by ({asked[2]}) ({asked[1]})", set())
    for rule in RULES:
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        yield Query(rule["alert"], rule["expr"], told)


QUERIES = list(queries())


def series(text: str) -> Series:
    """What is exposed; a counter that has not counted yet has no labels."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        if not family.samples:
            found[f"{family.name}_total"] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def exposed(flash_server: Sim, pro_server: Sim, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What a gateway and a model server show after a varied load."""
    following = tmp_path_factory.mktemp("policies") / "next.yaml"
    following.write_text(policy_text(flash_server, pro_server, rules=[{"id": "up", "route": "pro"}]))
    tried = {"policy": str(following), "shadow": 1.0}
    held = {"tiers": ["flash"], "to": "pro", "tokens": 4, "wait": "1s", "escalate_when": {"empty": True}}
    plans = {"usual": {"requests_per_minute": 7}}
    changes = {"caching": {"ttl": "1m"}, "holdback": held, "callers": {"plans": plans}, "candidate": tried}
    policy = policy_for(flash_server, pro_server, None, **changes)
    on_trial = {"candidate": {"policy": str(following), "canary": 1.0}}

    async def main() -> str:
        async with gateway(policy, tls_cert=following, tls_key=following) as gate:
            for fields in (
                body(COMPLEX),
                body(SIMPLE, stream=True),
                body(SIMPLE, temperature=0),
                body(SIMPLE, temperature=0),
                body(model="nobody's"),
            ):
                await gate.ask(fields)
            assert b" 400 " in await said(gate.port, b"GET / HTTP/1.1\r\n\r\n")
            flash_server.config(status=500, only="answer")
            await gate.ask(body(SIMPLE, temperature=1))
            flash_server.config(only="all")
            statuses = [(await gate.ask(body(model="flash"))).status for _ in range(3)]
            assert statuses[-1] == 429
            await eventually(lambda: bool(gate.front.doors.comparison.disagreements))
            gate.front.doors.policy = policy_for(flash_server, pro_server, None, **changes | on_trial)
            await gate.ask(body())
            return (await gate.get("/metrics")).data.decode()

    ours = asyncio.run(main())
    with urllib.request.urlopen(flash_server.url + "/metrics", timeout=5) as answer:
        return series(ours) | series(answer.read().decode())


@pytest.mark.parametrize("query", QUERIES, ids=[query.place for query in QUERIES])
def test_each_metric_and_label_that_a_board_or_an_alert_names_exists(query: Query, exposed: Series) -> None:
    labels = set(SCRAPED)
    selectors = SELECTOR.findall(query.text)
    assert selectors
    for name, matchers in selectors:
        assert name in exposed
        assert set(MATCHER.findall(matchers)) <= exposed[name] | SCRAPED
        labels |= exposed[name]
    assert {label.strip() for group in BY.findall(query.text) for label in group.split(",")} <= labels


@pytest.mark.parametrize("query", QUERIES, ids=[query.place for query in QUERIES])
def test_words_name_labels_that_the_query_leaves(query: Query) -> None:
    assert query.told <= {label.strip() for group in BY.findall(query.text) for label in group.split(",")}


def test_each_metric_of_ours_is_on_a_board_or_in_an_alert(exposed: Series) -> None:
    asked = {name for query in QUERIES for name, _ in SELECTOR.findall(query.text)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed if not name.startswith("vllm:")}
    assert ours - stems == set()


@pytest.mark.parametrize("asked", ENVOY)
def test_the_board_of_envoys_gateway_finds_its_metrics(asked: str, exposed: Series) -> None:
    name, _, labels = asked.rstrip("}").partition("{")
    assert set(labels.split(",")) <= exposed[name]


@each_board
def test_a_board_has_its_own_name_and_panels_that_do_not_overlap(board: JSON) -> None:
    assert len({other["uid"] for other in BOARDS.values()}) == len(BOARDS)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        taken |= cells


def test_all_files_are_in_the_config_maps_but_the_tests_of_the_rules_and_what_compose_takes() -> None:
    made = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"]
    listed = {name for one in made for name in one["files"]}
    assert listed == {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml", "rules_test.yaml", "compose"}


def test_each_alert_has_a_test_in_which_it_speaks_and_one_in_which_it_does_not() -> None:
    checks = [
        (re.findall(r'alertname="(\w+)"', check["expr"])[0], bool(check["exp_samples"]))
        for test in yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
        for check in test["promql_expr_test"]
    ]
    for rule in RULES:
        assert {speaks for name, speaks in checks if name == rule["alert"]} == {True, False}, rule["alert"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus has it)")
@pytest.mark.parametrize("command", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")])
def test_prometheus_reads_the_rules_and_their_tests_pass(command: tuple[str, ...]) -> None:
    made = subprocess.run([PROMTOOL or "", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus has it)")
@each_board
def test_prometheus_reads_the_queries_of_the_boards(board: JSON, tmp_path: Path) -> None:
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    plain = [text.replace("$__rate_interval", "5m").replace("$__range", "5m") for text in texts]
    rules = [{"record": f"asked:{at}", "expr": text} for at, text in enumerate(plain)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    made = subprocess.run([PROMTOOL or "", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
