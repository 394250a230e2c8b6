"""How soon does the page at /ui stand?   A fresh browser each time, from the click to its first figures and charts.

python -m loadtest.page [--rounds 15]
"""

import argparse
import contextlib
import secrets
import shutil
import statistics
import sys

from playwright.sync_api import Browser, sync_playwright

from loadtest.servers import policy, running, sim

ADMIN = secrets.token_hex(32)
STANDS = (
    "() => /[0-9]/.test(document.querySelector('.figure')?.textContent) && document.querySelectorAll('canvas').length"
)
SIZES = """() => [...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]
    .filter((entry) => entry.name.includes('/ui')).map((entry) => entry.decodedBodySize)"""


def stood(browser: Browser, url: str) -> tuple[float, list[int]]:
    """Milliseconds until the overview shows what it is for, and the bytes of each file of the page."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.add_init_script(f"sessionStorage.setItem('admin-key', '{ADMIN}')")
        page.goto(f"{url}/ui/")
        page.wait_for_function(STANDS, polling="raf")
        return float(page.evaluate("performance.now()")), list(page.evaluate(SIZES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    chromium = shutil.which("chromium") or sys.exit("no Chromium on this machine (apt-get install chromium)")
    with contextlib.ExitStack() as stack:
        tiers = [stack.enter_context(sim(tier)) for tier in ("flash", "pro")]
        url, _ = stack.enter_context(running(policy(), tiers, ADMIN_KEY=ADMIN))
        playwright = stack.enter_context(sync_playwright())
        browser = stack.enter_context(playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]))
        found = [stood(browser, url) for _ in range(rounds)]
    times, sizes = [one for one, _ in found], found[0][1]
    print(f"{len(sizes)} files, {sum(sizes)} bytes; ms until it stands: median {statistics.median(times):.0f}, "
          f"worst {max(times):.0f}, {rounds} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
