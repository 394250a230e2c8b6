"""Does the page show what the gateway does?   Debian's Chromium, real processes; skipped where there is no Chromium."""

import json
import re
import secrets
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loadtest.servers import Sim, free_port, program, running, until
from tests.tiers import JSON

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: `make test` installs it")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: `make test` installs it")
from playwright.sync_api import Browser, Page, Route, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ADMIN, CALLER = secrets.token_hex(32), secrets.token_hex(32)
SIMPLE = "What is the capital of Australia, if I may ask?"
COMPLEX = "Prove step by step that there are infinitely many primes of the form 4k+3, and analyse the case 4k+1."
HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"
VIEWS = {"Overview": "overview", "Decisions": "decisions", "Try it": "try", "Policy": "policy", "Tiers": "tiers"}
POLICY = """\
schema: 1
name: "<b>looked at</b>"
revision: "<script>alert(3)</script>"
tiers:
  flash:
    model: {flash}
    replicas: ["${{FLASH_URL}}"]
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
  pro: {{model: {pro}, replicas: ["${{PRO_URL}}", "http://127.0.0.1:9"], price: {{output_per_m: 1000000}}}}
triage: {{tier: flash, strategy: json_logprobs, timeout: 5s, threshold: 0.5, speculate: never}}
rules:
  - {{id: phase, when: {{header: {{x-phase: {html}}}}}, route: flash}}
  - {{id: triaged, route: {{simple: flash, complex: pro}}}}
aliases: {{"<img/src=x/onerror=alert(4)>": auto}}
tests:
  - name: {html}
    request: {{messages: [{{role: user, content: hi}}]}}
    verdict: {{p_complex: 0.1}}
    expect: {{tier: flash}}
"""


@dataclass
class Place:
    """A gateway, its tiers, and its page in a browser."""

    url: str
    policy: Path
    flash: Sim
    pro: Sim
    browser: Browser
    said: list[str] = field(default_factory=list)  # in consoles, by pages and by CSP

    def ask(self, text: str = SIMPLE, **headers: str) -> JSON:
        """What a caller is answered. The browser looks on."""
        model = headers.pop("model", "auto")
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20}).encode()
        sent = {"authorization": f"Bearer {CALLER}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + "/v1/chat/completions", body, sent)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: JSON = json.loads(answer.read())
            return found

    def told(self, path: str, key: str = "") -> bytes:
        """What the gateway says there."""
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def page(self, view: str = "", *, key: str | None = ADMIN, width: int = 1280) -> Page:
        """The page in a fresh context, opened with `key`."""
        context = self.browser.new_context(viewport={"width": width, "height": 844})
        context.set_default_timeout(5000)
        page = context.new_page()
        page.clock.install()  # time passes as ever, but may be made to pass at once
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        if key:
            page.add_init_script(f"sessionStorage.getItem('admin-key') ?? sessionStorage.setItem('admin-key', '{key}')")
        page.goto(f"{self.url}/ui/{view and '#'}{view}")
        return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): the page is not looked at")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def policy(flash_server: Sim, pro_server: Sim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy's file."""
    file = tmp_path_factory.mktemp("policy") / "policy.yaml"
    file.write_text(POLICY.format(flash=flash_server.model, pro=pro_server.model, html=json.dumps(HTML)))
    return file


@pytest.fixture(scope="module")
def gateway(policy: Path, flash_server: Sim, pro_server: Sim) -> Iterator[str]:
    with running(policy, [flash_server, pro_server], ADMIN_KEY=ADMIN, API_KEY=CALLER) as (url, _):
        yield url


@pytest.fixture
def place(browser: Browser, gateway: str, policy: Path, flash: Sim, pro: Sim) -> Iterator[Place]:
    """Nothing may be said in a console, but that a request was refused or not answered."""
    made = Place(gateway, policy, flash, pro, browser)
    yield made
    for context in browser.contexts:
        context.close()
    assert [said for said in made.said if "Failed to load resource" not in said] == []


def test_a_wrong_key_opens_nothing_and_the_right_one_stays_in_its_tab(place: Place) -> None:
    page = place.page("decisions", key=None)
    expect(page.get_by_role("navigation")).to_be_hidden()
    for key, told in (("wrong", "Incorrect admin key"), (CALLER, "Incorrect admin key"), ("schlüssel…", "cannot be")):
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(told)
        # It is there while it is tried. wait_for_function would evaluate text in the page, which CSP forbids.
        until(lambda: page.evaluate("sessionStorage.getItem('admin-key') === null"))
    page.get_by_label("Key", exact=True).fill(ADMIN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Decisions")).to_be_focused()
    page.reload()
    expect(page.get_by_role("heading", name="Decisions")).to_be_visible()
    assert ADMIN not in page.url + page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    assert page.evaluate("JSON.stringify(sessionStorage)").count(ADMIN) == 0


def test_the_overview_counts_what_was_asked_and_goes_on_counting(place: Place) -> None:
    place.ask(SIMPLE)
    place.ask(COMPLEX)
    page = place.page()
    requests = page.locator(".tile", has_text="Requests").locator(".figure")
    expect(requests).not_to_have_text("–")
    before = int(requests.inner_text())
    place.ask(COMPLEX)
    page.clock.fast_forward(3000)
    expect(requests).to_have_text(str(before + 1))
    expect(page.locator("canvas")).to_have_count(3)
    expect(page.get_by_role("row", name=re.compile("triaged complex pro"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Time to the first token, last ten minutes"))).to_be_visible()
    page.get_by_text("Last 10 min").click()
    expect(requests).to_have_text("1")
    assert page.evaluate(SHIFTED) < 0.02


SHIFTED = """() => new Promise((resolve) => new PerformanceObserver((list) => resolve(
    list.getEntries().reduce((sum, entry) => sum + entry.value, 0))).observe({type: "layout-shift", buffered: true}) ||
    setTimeout(() => resolve(0), 100))"""


def test_a_decision_shows_while_we_look_and_opens_to_its_whole_explanation(place: Place) -> None:
    page = place.page("decisions")
    expect(page.get_by_text("Reading")).to_have_count(0)
    place.ask(COMPLEX, x_request_id="looked-for")
    page.get_by_label("Filter").fill("looked-for")
    expect(page.locator("button.row:visible")).to_have_count(0)
    page.clock.fast_forward(2000)
    page.get_by_role("button", name=re.compile("pro triaged complex")).click()
    detail = page.get_by_role("complementary", name="The decision")
    expect(detail).to_contain_text("pro by rule triaged: complex.")
    for told in ("looked-for", "Probability of complex", "x-phase", "decides", "With another verdict", "Facts"):
        expect(detail).to_contain_text(told)
    expect(detail.get_by_role("img", name=re.compile("probability 0"))).to_be_visible()
    page.reload()
    expect(page.get_by_role("complementary")).to_contain_text("pro by rule triaged: complex.")
    page.go_back()
    expect(page.get_by_role("complementary")).to_be_hidden()
    expect(page.locator("button.row").first).to_be_visible()


def test_a_decision_that_is_no_more_in_the_list_is_found_by_its_requests_id(place: Place) -> None:
    place.ask(COMPLEX, x_request_id="of-yesterday")
    until(lambda: b"of-yesterday" in place.told("/admin/records?id=of-yesterday", ADMIN))
    page = place.page("decisions", key=None)
    page.route(
        "**/admin/records?limit=*", lambda route: route.fulfill(body="")
    )  # as if more came since than are listed
    page.evaluate(f"sessionStorage.setItem('admin-key', '{ADMIN}')")
    page.reload()
    expect(page.get_by_text("No decision yet")).to_be_visible()
    for name, told in (
        ("of-yesterday", "pro by rule triaged: complex."),
        ("of-nobody", "not among those that are kept"),
    ):
        page.get_by_label("Filter").fill(name)
        page.keyboard.press("Enter")
        expect(page.get_by_role("complementary", name="The decision")).to_contain_text(told)


def test_a_prompt_is_explained_without_being_answered_or_sent_and_streamed(place: Place) -> None:
    page = place.page("try")
    page.get_by_label("Prompt").fill(COMPLEX + " Again.")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("alert")).to_contain_text("key of a caller")
    page.get_by_label("Key of a caller").fill(CALLER)
    page.get_by_role("button", name="Explain").click()
    out = page.locator(".out")
    expect(out).to_contain_text("pro by rule triaged: complex.")
    assert place.pro.seen() == []
    page.get_by_label("Longest answer").fill("7")
    page.get_by_role("button", name="Send and stream").click()
    expect(out).to_contain_text("pro by rule triaged: complex.")
    expect(out).to_contain_text("First token here")
    expect(out).to_contain_text("Its caller pays$7.00")
    assert out.locator(".answer").all_inner_texts() != ["", ""]
    assert len(place.pro.seen()) == 1


def test_a_stream_is_read_whichever_way_its_lines_end(place: Place) -> None:
    def respelled(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.body().replace(b"\n", b"\r\n"))

    page = place.page("try")
    page.route("**/v1/chat/completions", respelled)
    page.get_by_label("Prompt").fill(SIMPLE)
    page.get_by_label("Key of a caller").fill(CALLER)
    page.get_by_role("button", name="Send and stream").click()
    expect(page.locator(".out")).to_contain_text("All of it")
    assert page.locator(".answer").all_inner_texts() != ["", ""]


def test_tiers_show_their_places_their_servers_and_who_does_not_answer(place: Place) -> None:
    page = place.page("tiers")
    low = page.locator(".panel", has_text=place.flash.model)
    expect(low.get_by_role("row", name=f"{place.flash.url} closed 0 0")).to_be_visible()
    expect(low).to_contain_text("0 of 256")
    expect(page.get_by_role("row", name="http://127.0.0.1:9 closed no answer")).to_be_visible()


def test_the_overview_tells_of_a_missing_model_and_of_files_that_cannot_be_used(place: Place) -> None:
    def broken(route: Route) -> None:
        answer = route.fetch()
        found = answer.json() | {"keys_file": "broken", "certificate": "expired"}
        found["models"] |= {"flash": ["short"], "pro": ["missing", None]}
        route.fulfill(response=answer, json=found)

    page = place.page("tiers")
    page.route("**/ready", broken)
    page.goto(f"{place.url}/ui/#overview")
    standing = page.locator(".panel", has_text="Standing")
    expect(standing).to_contain_text("missing, with a shorter context, or our key refused: flash, pro")
    for name, state in (("Keys file", "wrong; the last good one stays"), ("Certificate", "expired")):
        expect(standing).to_contain_text(re.compile(f"{name}\\s*{state}"))


def test_the_policy_is_shown_with_its_tests_and_what_another_text_would_change(place: Place) -> None:
    place.ask(SIMPLE)
    page, text = place.page("policy"), place.policy.read_text()
    expect(page.locator(".numbered")).to_contain_text("speculate: never")
    expect(page.get_by_role("heading", name="Tests: all 1 pass")).to_be_visible()
    expect(page.get_by_text(HTML).first).to_be_visible()
    candidate = page.get_by_label("Another text")
    expect(candidate).to_have_value(text)
    compare = page.get_by_role("button", name="Check and compare")
    candidate.fill(text.replace("complex: pro", "complex: por"))
    compare.click()
    expect(page.get_by_role("alert")).to_contain_text("did you mean")
    expect(page.get_by_text("This file has no tests of its own.")).to_have_count(0)
    expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile(r"^[0-9]+:[0-9]+$"))
    (trial := place.policy.with_name("trial.yaml")).write_text(text.replace("complex: pro", "complex: por"))
    candidate.fill(text + "candidate: {policy: trial.yaml}\n")
    compare.click()
    expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile(rf"^{trial}:[0-9]+:[0-9]+$"))
    candidate.fill(text.replace("threshold: 0.5", "threshold: 0.001"))
    compare.click()
    expect(page.get_by_role("alert")).to_contain_text("expected flash, got pro")
    candidate.fill(text.replace("threshold: 0.5", "threshold: 0.001").partition("tests:")[0])
    compare.click()
    expect(page.get_by_role("row", name="triage.threshold 0.5 0.001")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("flash pro triaged"))).to_be_visible()
    candidate.fill("")
    for _ in range(2):  # when it looks again it is done with what it saw before
        with page.expect_response("**/admin/policy", timeout=20_000):
            page.clock.fast_forward(5000)
    expect(candidate).to_have_value("")  # who empties it is about to write


def test_a_policy_file_that_turns_wrong_is_told_until_it_is_right(place: Place) -> None:
    page, text = place.page("policy"), place.policy.read_text()
    expect(page.locator(".numbered")).to_contain_text("triaged")
    try:
        place.policy.write_text(text.replace("complex: pro", "complex: por"))
        until(lambda: b"did you mean" in place.told("/ready"))
        page.clock.fast_forward(5000)
        expect(page.get_by_role("alert")).to_contain_text("The file is wrong")
        expect(page.get_by_role("alert")).to_contain_text("por")
        expect(page.locator(".numbered")).to_contain_text("complex: pro")
        page.goto(f"{place.url}/ui/#overview")
        expect(page.get_by_role("link", name="wrong; the last good one stays")).to_be_visible()
    finally:
        place.policy.write_text(text)
    until(lambda: b"did you mean" not in place.told("/ready"))
    page.goto(f"{place.url}/ui/#policy")
    expect(page.get_by_text("no error")).to_be_visible()


def test_all_can_be_done_by_keyboard(place: Place) -> None:
    for number in range(3):
        place.ask(SIMPLE, x_request_id=f"by-keyboard-{number}")
    page = place.page()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip to content")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Decisions")).to_be_focused()
    page.locator("button.row").nth(2).wait_for()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.locator("button.row").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("button.row").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    detail = page.get_by_role("complementary")
    expect(detail).to_be_focused()
    expect(detail).to_contain_text("flash by rule")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(page.locator("button.row").nth(1)).to_be_focused()


def test_the_theme_is_the_systems_until_another_is_chosen(place: Place) -> None:
    page = place.page("%")  # an address that names nothing
    page.emulate_media(color_scheme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    grounds = [ground()]
    for chosen in ("light", "dark", "auto"):
        page.get_by_role("button", name="Theme").click()
        expect(page.get_by_role("button", name=f"Theme: {chosen}")).to_be_visible()
        page.reload()
        grounds.append(ground())
    page.emulate_media(color_scheme="light")
    dark, light = grounds[:2]
    assert [*grounds, ground()] == [dark, light, dark, dark, light]
    assert light != dark


def test_no_view_is_wider_than_a_telephone(place: Place) -> None:
    place.ask(COMPLEX, x_request_id="a" * 128, model="<img/src=x/onerror=alert(4)>")
    page = place.page(width=390)
    for name, view in VIEWS.items():
        page.goto(f"{place.url}/ui/#{view}")
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_text("Reading")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.goto(f"{place.url}/ui/#decisions/{'a' * 128}")
    expect(page.get_by_role("complementary")).to_contain_text("Facts")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


RULES: dict[Any, JSON] = {
    "dark": {"runOnly": ["color-contrast"]},
    "light": {},
}  # all others look at what either theme has


def test_axe_finds_nothing_in_any_view_in_either_theme(place: Place) -> None:
    place.ask(COMPLEX, x_request_id="seen-by-axe")
    page = place.page()
    for name, view in {**VIEWS, "seen-by-axe": "decisions/seen-by-axe"}.items():
        page.goto(f"{place.url}/ui/#{view}")
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_text("Reading")).to_have_count(0)
        if "/" in view:
            expect(page.get_by_role("complementary")).to_contain_text("Facts")
        for theme, rules in RULES.items():
            page.emulate_media(color_scheme=theme)
            found = axe.Axe().run(page, options={"resultTypes": ["violations"], **rules})
            assert found.violations_count == 0, f"{name}, {theme}: {found.generate_report()}"


def test_the_description_has_every_operation_and_asks_nobody_else(place: Place) -> None:
    page = place.page(key=None, width=390)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{place.url}/docs")
    told = json.loads(place.told("/openapi.json"))["paths"]
    names = {f"{method.upper()} {path}" for path, methods in told.items() for method in methods}
    expect(page.locator("summary")).to_have_count(len(names))
    assert set(page.locator("summary code").all_inner_texts()) == names
    opened = "(open) => document.querySelectorAll('details').forEach((one, at) => { one.open = open.includes(at) })"
    page.evaluate(opened, list(range(len(names))))
    answers = page.locator("details", has_text="POST /v1/chat/completions")
    for text in ("x-route-tier (header)", "messages.role", "string or list of object or null", "error.code"):
        expect(answers.get_by_text(text).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(opened, [0, 1])
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
    assert all(url.startswith(place.url) for url in asked)


def test_what_callers_and_operators_write_is_shown_as_text(place: Place) -> None:
    place.ask(HTML + COMPLEX, model="<img/src=x/onerror=alert(4)>", x_phase=HTML, x_request_id="html")
    page = place.page("decisions/html")
    expect(page.get_by_role("complementary")).to_contain_text(f"x-phase {HTML}")
    expect(page.get_by_role("complementary")).to_contain_text("<img/src=x/onerror=alert(4)>")
    page.goto(f"{place.url}/ui/#overview")
    expect(page.get_by_text("<b>looked at</b>")).to_be_visible()
    page.goto(f"{place.url}/ui/#try")
    page.get_by_label("Key of a caller").fill(CALLER)
    page.get_by_label("Prompt").fill(HTML + SIMPLE)
    page.get_by_role("button", name="Send and stream").click()
    expect(page.locator(".out")).to_contain_text("by rule triaged")
    assert page.locator("main img, main script, main b:has-text('looked')").count() == 0


def test_a_script_that_came_in_would_not_run(place: Place) -> None:
    page = place.page()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    with pytest.raises(sync_api.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<img src=x onerror=alert(5)>'")
    made = "const made = document.createElement('script'); made.append('window.ran = 1'); document.body.append(made)"
    assert page.evaluate(f"() => {{ {made}; return window.ran }}") is None
    assert [said for said in place.said if "Content Security Policy" in said or "Trusted" in said]
    place.said.clear()


def test_a_restart_of_the_gateway_is_told_and_lived_through(
    browser: Browser, policy: Path, flash: Sim, pro: Sim
) -> None:
    port = free_port()
    env = {"GATEWAY_ADMIN_KEY": ADMIN, "GATEWAY_API_KEY": CALLER, "FLASH_URL": flash.url, "PRO_URL": pro.url}
    serve = partial(program, ["-m", "gateway", "serve", "--policy", str(policy), "--port", str(port)], port, **env)
    with serve() as (url, _):
        place = Place(url, policy, flash, pro, browser)
        place.ask()
        page = place.page()
        expect(page.get_by_role("status")).to_have_text("Connected")
        expect(page.locator(".tile", has_text="Requests").locator(".figure")).to_have_text("1")
    page.clock.fast_forward(3000)
    expect(page.get_by_role("status")).to_contain_text("No answer")
    with serve():
        page.clock.fast_forward(3000)
        expect(page.get_by_role("status")).to_have_text("Connected")
        expect(page.get_by_text("The gateway was started again")).to_be_visible()
        expect(page.locator(".tile", has_text="Requests").locator(".figure")).to_have_text("0")
    page.context.close()


def test_a_tier_that_fails_is_told_on_the_overview_and_beside_each_answer_in_its_place(
    browser: Browser, flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    file = tmp_path / "policy.yaml"
    tiers = {
        "flash": {"model": "f", "replicas": ["http://127.0.0.1:9"]},
        "pro": {"model": pro.model, "replicas": [pro.url]},
    }
    failing = {"schema": 1, "tiers": tiers, "rules": [{"id": "all", "route": "flash"}]}
    file.write_text(json.dumps(failing | {"failover": {"tiers": {"flash": ["pro"]}}}))
    with running(file, (), ADMIN_KEY=ADMIN, API_KEY=CALLER) as (url, _):
        place = Place(url, file, flash, pro, browser)
        for _ in range(6):
            place.ask()
        page = place.page()
        expect(page.get_by_role("link", name="left alone: 1 of 1 of flash")).to_be_visible()
        page = place.page("decisions")
        expect(page.locator(".row .why").last).to_have_text("all rule in place of flash")
        page.context.close()
