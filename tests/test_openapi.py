"""Does the interface keep what its OpenAPI document says, whatever is sent?   A real gateway and simulated servers."""

import json
import secrets
import signal
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import checks

from gateway.dialects import DIALECTS
from loadtest.servers import Sim, running, until
from tests.gateway.test_server import told as ready
from tests.test_sdks import POLICY

ADMIN = secrets.token_hex(32)
CASES = {True: 8, False: 2}  # of each operation, about 30 ms each; those on which models answer, and others
BOUNDS = settings(deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
PROMISED = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(flash_server: Sim, pro_server: Sim) -> Iterator[str]:
    with running(POLICY, [flash_server, pro_server], ADMIN_KEY=ADMIN) as (found, _):
        yield found


@pytest.mark.filterwarnings("ignore:It looks like `register_random`")  # schemathesis' own, on Python 3.14
def test_no_request_is_answered_otherwise_than_the_document_says(url: str, flash: Sim, pro: Sim) -> None:
    document = schemathesis.openapi.from_url(url + "/openapi.json")
    operations: list[Any] = [found.ok() for found in document.get_all_operations()]  # type: ignore[union-attr]
    assert operations[0].path == "/v1/chat/completions"  # /docs lists them in this order
    answered: set[str] = set()

    def ask(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {ADMIN}"}, timeout=10)
        case.validate_response(answer, PROMISED)
        if answer.status_code < 400:
            answered.add(case.path)
            return
        error = answer.json()["error"]
        assert isinstance(error["type"], str)
        assert isinstance(error["message"], str)

    asked = {*DIALECTS, "/v1/route"}
    for operation in operations:
        cases: SearchStrategy[Any] = operation.as_strategy()
        settings(BOUNDS, max_examples=CASES[operation.path in asked])(given(cases)(ask))()
    assert {operation.path for operation in operations} > DIALECTS.keys()
    assert len(answered & DIALECTS.keys()) > 2
    assert "/v1/route" in answered


def test_a_client_that_is_made_of_the_document_lacks_no_path_for_want_of_what_a_list_holds(url: str) -> None:
    found = [json.loads(urlopen(url + "/openapi.json").read())]
    for one in found:
        found += [inner for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)]
    lists = [one for one in found if isinstance(one, dict) and "array" in (one.get("type"), *(one.get("type") or ()))]
    assert [one for one in lists if "items" not in one] == []


def test_what_we_say_ourselves_has_a_form_as_far_as_a_client_reads_it(url: str) -> None:
    document = json.loads(urlopen(url + "/openapi.json").read())
    for path in ("/health", "/ready", "/v1/key", "/v1/models", "/v1/models/{model}"):
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer["required"]
        assert answer["properties"].keys() >= set(answer["required"])
    shapes = document["components"]["schemas"]
    (sides, _) = shapes["Explanation"]["properties"]["sides"]["anyOf"]
    for ways in (sides, sides["properties"]["otherwise"]):
        assert ways["additionalProperties"] == {"$ref": "#/components/schemas/Way"}
    assert "tier" in shapes["Way"]["properties"]


def test_who_leaves_says_so_as_the_document_has_it(flash_server: Sim, pro_server: Sim) -> None:
    with running(POLICY, [flash_server, pro_server], DRAIN_WAIT="60") as (url, process):
        told = json.loads(urlopen(url + "/openapi.json").read())["paths"]["/ready"]["get"]["responses"]
        port = int(url.rpartition(":")[2])
        for status in (200, 503):
            until(lambda: ready(port)[0] == status)  # noqa: B023  called at once
            jsonschema.validate(ready(port)[1], told[str(status)]["content"]["application/json"]["schema"])
            process.send_signal(signal.SIGTERM)
        process.kill()
