"""Which paths are served to callers, and what is spoken there?   The package's one public module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.body import Body
from gateway.dialects.answers import CHUNKS, COUNTS, EMBEDDINGS, MESSAGES, RESPONSES, Answers, Counted, Seen, Whole
from gateway.dialects.requests import count, embeddings, item, message, messages, responses, texts, turn
from gateway.errors import BadRequest
from gateway.fields import Fields, Message, chat

__all__ = [
    "CHAT", "DIALECTS", "LENGTHS", "PROMPTS", "TEXT",
    "Answers", "Api", "Counted", "Dialect", "Seen", "Whole", "read",
]  # fmt: skip

Api = Literal["chat", "messages", "responses", "embeddings"]
SHORT = 16  # bytes; an empty array takes no more


@dataclass(frozen=True, slots=True)
class Dialect:
    """The API of one path.

    `api`: the member of a tier's `can` that says whether its servers have it. `prompt`: the members that hold the
    conversation; the last of them is mandatory. `foreign`: members of other paths that are refused here: two servers
    could read two prompts, or two lengths of an answer. `work`: what is asked of the model (`count` needs none).
    `names`: the name here of a tier's request default, where it differs from chat's. `always`: members that every
    request is sent with. `templated`: the prompt goes through the chat template. `turn`: what an element of the
    conversation's array says.
    """

    api: Api
    read: Callable[[bytes], tuple[Body, Fields]]
    answers: Answers
    prompt: tuple[str, ...]
    foreign: tuple[str, ...]
    work: Literal["answer", "embed", "count"] = "answer"
    names: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, bytes] = field(default_factory=dict)
    templated: bool = True
    turn: Callable[[bytes], list[Message]] = message

    def conversation(self, body: Body) -> bytes:
        """The members that hold the conversation, joined by line feeds."""
        if len(self.prompt) == 1:
            return body.raw(self.prompt[0]) or b""
        return b"\n".join([raw for name in self.prompt if (raw := body.raw(name))])


_MESSAGES_PROMPT, _NOT_MESSAGES = ("system", "messages"), ("prompt", "input")
LENGTHS = ("max_tokens", "max_completion_tokens")  # chat's two names for the most tokens of an answer
_OUTPUT = dict.fromkeys(LENGTHS, "max_output_tokens")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DIALECTS = {
    CHAT: Dialect("chat", chat, CHUNKS, ("messages",), ("prompt",)),
    TEXT: Dialect(
        "chat",
        texts,
        CHUNKS,
        ("prompt",),
        ("messages", "max_completion_tokens"),
        names={"max_completion_tokens": "max_tokens"},
        templated=False,
    ),
    "/v1/messages": Dialect(
        "messages",
        messages,
        MESSAGES,
        _MESSAGES_PROMPT,
        _NOT_MESSAGES,
        names={"max_completion_tokens": "max_tokens", "stop": "stop_sequences"},
        turn=turn,
    ),
    "/v1/messages/count_tokens": Dialect("messages", count, COUNTS, _MESSAGES_PROMPT, _NOT_MESSAGES, "count"),
    # Nobody may read a response again: which server would have it is not known, nor whose it is.
    "/v1/responses": Dialect(
        "responses",
        responses,
        RESPONSES,
        ("instructions", "input"),
        ("messages", *LENGTHS, "n"),
        names=_OUTPUT,
        always={"store": b"false"},
        turn=item,
    ),
    "/v1/embeddings": Dialect(
        "embeddings", embeddings, EMBEDDINGS, ("input",), ("messages", "prompt"), "embed", templated=False
    ),
}
# Members that end up in a prompt, in any dialect.
PROMPTS = (
    *("messages", "prompt", "suffix", "system", "instructions", "input"),
    *("tools", "functions", "documents", "response_format", "text", "output_config", "chat_template_kwargs"),
)


def read(path: str, data: bytes) -> tuple[Body, Fields]:
    """A request's body on one of the paths. Raises BadRequest with the member's name as `param`."""
    dialect = DIALECTS[path]
    body, fields = dialect.read(data)
    for name in dialect.foreign:
        if name in body.members and body.size(name):
            raise BadRequest(f"'{name}' does not belong to {path}.", param=name)
    wanted = dialect.prompt[-1]
    value = body.members.get(wanted)
    if value is None or (len(value) <= SHORT and not (body.raw(wanted) or b"").strip(b"[] \t\r\n")):
        raise BadRequest(f"'{wanted}' is missing or empty.", param=wanted)
    return body, fields
