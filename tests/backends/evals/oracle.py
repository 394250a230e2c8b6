"""A server with OpenAI's API that knows the bundled items, and can be told to be wrong, to fail or to stop short."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from backends.evals.tasks import BUNDLED, Item, items, rows

SOLVED = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows(BUNDLED / "humaneval.jsonl")}
COUNTED = ("prompt_tokens", "completion_tokens")
NATS = 0.25  # of each token of a scored text, but the first


def right(task: str, item: Item) -> str:
    if task == "humaneval":
        return f"Here it is:\n```python\n{SOLVED[item.id]}```"
    return f"Let me think. \ud83d\nThe answer is ({item.key})" if task == "mmlu_pro" else f"So it is.\n#### {item.key}"


def wrong(task: str, item: Item) -> str:
    """In the right form."""
    if task == "humaneval":
        return f"```python\ndef {item.key['entry_point']}(*given):\n    return 'wrong'\n```"
    return f"The answer is ({'B' if item.key == 'A' else 'A'})" if task == "mmlu_pro" else f"#### {item.key}1"


@dataclass
class Oracle:
    """What the server does; `wrong` holds (model, item id), `status` what the next requests are refused with, and
    `after` how many seconds later they are welcome again."""

    url: str = ""
    wrong: set[tuple[str, str]] = field(default_factory=set)
    status: list[int] = field(default_factory=list)
    after: str = "0.01"
    cut: bool = False
    silent: bool = False
    forms: tuple[str, ...] = ("prompt_logprobs", "echo")
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    counts: bool = True

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 10, "completion_tokens": 5} if self.counts else dict.fromkeys(COUNTED)
        if "prompt" in body:
            return {"choices": [self.likelihood(body)], "usage": usage}
        task, item = KNOWN[body["messages"][-1]["content"]]
        text = (wrong if (body["model"], item.id) in self.wrong else right)(task, item)
        message = {"role": "assistant", "content": None if self.silent else text}
        return {"choices": [{"message": message, "finish_reason": "length" if self.cut else "stop"}], "usage": usage}

    def likelihood(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ten tokens; a model's name ending in a digit says how many times NATS each has."""
        value = -NATS * (int(body["model"][-1]) if body["model"][-1].isdigit() else 1)
        if "prompt_logprobs" in body and "prompt_logprobs" in self.forms:
            return {"text": "", "prompt_logprobs": [None] + [{"7": {"logprob": value}}] * 9}
        if body.get("echo") and "echo" in self.forms:
            return {"text": "", "logprobs": {"token_logprobs": [None] + [value] * 9 + [-99.0]}}
        return {"text": "", "logprobs": None}


KNOWN = {item.prompt: (task, item) for task in ("humaneval", "mmlu_pro", "gsm8k") for item in items(task, None)}


@contextmanager
def serving() -> Iterator[Oracle]:
    told = Oracle()

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.asked.append(body)
            told.keys.add(self.headers["authorization"])
            status = told.status.pop(0) if told.status else 200
            said = json.dumps(told.reply(body) if status == 200 else {"error": "no"}).encode()
            self.send_response(status)
            self.send_header("retry-after", told.after)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (named by http.server)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
