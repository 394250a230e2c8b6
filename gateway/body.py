"""Which bytes of a request body do we read, and which may change?

A body is parsed once. What we decide on is decoded into `Fields`; the rest stays the client's own bytes. `Body.edit`
replaces, drops or adds whole top-level members and leaves every other byte alone.
"""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Annotated, Any, TypeVar

import msgspec

from gateway.errors import BadRequest

MAX_CHOICES = 16  # `n` multiplies the work of one request; vLLM ran out of memory on huge values (CVE-2026-34756)
MAX_TOKENS = 1 << 53  # the largest count that every store and server keeps exactly
# What a body may hold at most, where we look at each: a megabyte of text costs 1 ms, a megabyte of empty objects 500.
MAX_VALUES = 1 << 20  # objects, arrays and members in all; as text they would fill a context of a million tokens
MAX_MESSAGES = 100_000  # Anthropic's own bound; of messages, and of one's pieces
MAX_MEMBERS = 1024  # of an object that may be edited
MAX_TOOLS = 4096
MAX_OPTION = 1 << 18  # bytes of a member of OPTIONS, which are decoded whole
OPTIONS = ("stream_options", "response_format", "chat_template_kwargs", "metadata")
OPENING = 2048  # characters of a conversation that tell it from others
SPARE = 100  # frames of stack that a later reader of an accepted body may stand deeper
SHALLOW = 1024  # bytes that cannot nest deep enough to matter

T = TypeVar("T")
# These run over JSON that a decoder has accepted, so they need not be strict.
_KEY = re.compile(rb'[\s,]*("(?:[^"\\]++|\\.)*+")\s*:\s*')
_END = re.compile(rb"\s*\}")
_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")
_MISSING = re.compile(r"^Object missing required field `(\w+)`")

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
Turns = Annotated[list[T], msgspec.Meta(max_length=MAX_MESSAGES)]
Prompts = Annotated[list[T], msgspec.Meta(max_length=MAX_VALUES)]
Tools = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_TOOLS)]


class Link(msgspec.Struct):
    url: str | None = None


class Part(msgspec.Struct):
    """One piece of a message's content."""

    type: str
    text: str | None = None
    image_url: str | Link | None = None
    video_url: str | Link | None = None
    audio_url: str | Link | None = None
    file_url: str | Link | None = None

    def urls(self) -> list[str]:
        """Every address in this piece; which of them a server follows is the server's choice."""
        links = (self.image_url, self.video_url, self.audio_url, self.file_url)
        return [url for link in links if (url := link.url if isinstance(link, Link) else link) is not None]


class Message(msgspec.Struct):
    role: str
    content: str | Turns[Part] | None = None

    def text(self) -> str:
        """The words of this message, media left out."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class Fields(msgspec.Struct):
    """The fields that we decide on, type-checked; `null` means absent, as in OpenAI's API."""

    model: str | None = None
    messages: Turns[Message] | None = None
    prompt: str | Prompts[Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    tools: Tools | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    metadata: dict[str, Any] | None = None

    def opening(self) -> str:
        """What was said before the first answer, cut at OPENING: the same in every later turn of a conversation."""
        if not self.messages:
            return str(self.prompt[:OPENING]) if self.prompt else ""
        said = takewhile(lambda message: message.role != "assistant", self.messages)
        return "\n".join(message.text()[:OPENING] for message in said)[:OPENING]


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS = msgspec.json.Decoder(Fields)
_STRING = msgspec.json.Decoder(str)


class Body:
    """A JSON object as bytes, and where its members are: key -> (start of key, start of value, end of value)."""

    __slots__ = ("data", "spans")

    def __init__(self, data: bytes) -> None:
        """Raises BadRequest when `data` is not one JSON object with unique keys, or holds too much."""
        if len(data) > MAX_VALUES and sum(map(data.count, (b"{", b"[", b":"))) > MAX_VALUES:
            raise BadRequest("The request body has too many objects, arrays and members.")
        self.data = data
        self.spans = _spans(data, _decode(_MEMBERS, data))

    def raw(self, key: str) -> bytes | None:
        """The value's own bytes; None when the key is absent or null."""
        span = self.spans.get(key)
        value = self.data[span[1] : span[2]] if span else None
        return None if value == b"null" else value

    def size(self, key: str) -> int:
        """How many bytes `raw` has; 0 for None."""
        span = self.spans.get(key)
        if not span:
            return 0
        size = span[2] - span[1]
        return 0 if size == 4 and self.data.startswith(b"null", span[1]) else size

    def edit(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The same object with `changes` applied: bytes replace or add a member, None drops it."""
        data, spans = self.data, self.spans
        end = data.index(b"{") + 1
        added = [msgspec.json.encode(k) + b":" + v for k, v in changes.items() if v is not None and k not in spans]
        kept = [(*spans[k][1:], v) for k, v in changes.items() if v is not None and k in spans]
        if spans and len(added) + len(kept) == len(changes):
            return _replaced(data, end, added, sorted(kept))
        pieces = [data[:end], b",".join(added)]
        first = not added
        for key, (start, value_start, value_end) in spans.items():
            gap, end = data[end:start], value_end
            value = changes.get(key, data[value_start:value_end])
            if value is None:
                continue
            if first:
                gap = gap.replace(b",", b"")
            elif b"," not in gap:
                gap = b"," + gap
            pieces += gap, data[start:value_start], value
            first = False
        pieces.append(data[end:])
        return b"".join(pieces)


def _replaced(data: bytes, at: int, added: list[bytes], values: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with members added at its start, which `at` is the end of, and other values where they stood."""
    pieces = [data[:at], b"".join([member + b"," for member in added])]
    for start, end, value in values:
        pieces += data[at:start], value
        at = end
    pieces.append(data[at:])
    return b"".join(pieces)


def read(data: bytes) -> tuple[Body, Fields]:
    """The body and its decoded fields. Raises BadRequest with the field's name as `param`."""
    return read_as(_FIELDS, data)


def read_as(shape: "msgspec.json.Decoder[T]", data: bytes) -> tuple[Body, T]:
    """The same for fields of another shape.

    What is accepted can be decoded again: it is UTF-8, and not nested so deep that a caller's stack decides.
    """
    try:
        data.isascii() or str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The request body is not valid UTF-8: {error.reason} at byte {error.start}.") from None
    body = Body(data)
    for name in OPTIONS if len(data) > MAX_OPTION else ():
        if body.size(name) > MAX_OPTION:
            raise BadRequest(f"'{name}' is over {MAX_OPTION} bytes.", param=name)
    return body, _decode(shape, data)


def _decode(decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
    try:
        return _below(SPARE, decoder, data) if len(data) > SHALLOW else decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


def _below(frames: int, decoder: "msgspec.json.Decoder[T]", data: bytes) -> T:
    """Decodes that many calls further down the stack, where Python gives up on nesting that much earlier."""
    return _below(frames - 1, decoder, data) if frames else decoder.decode(data)


def _invalid(text: str) -> BadRequest:
    """From msgspec's "what - at `$.path`"; a member of free mappings is named by the mapping."""
    found = _PATH.search(text)
    what, where = (text[: found.start()], found.group(1).partition("[...]")[0]) if found else (text, "")
    if missing := _MISSING.match(what):
        where = f"{where}.{missing.group(1)}".lstrip(".")
    return BadRequest(f"Invalid value for '{where}': {what}." if where else f"{what}.", param=where or None)


def _spans(data: bytes, members: dict[str, msgspec.Raw]) -> dict[str, tuple[int, int, int]]:
    """Where each member lies. A key that comes twice is refused: two readers could read two different requests.

    `members` holds the last value of each key. A value that does not stand where its key first comes, a key met again
    and members beyond the last are what a second coming looks like.
    """
    if len(members) > MAX_MEMBERS:
        raise BadRequest(f"An object of the request has more than {MAX_MEMBERS} members.")
    spans: dict[str, tuple[int, int, int]] = {}
    at, key = data.index(b"{") + 1, ""
    for _ in members:
        found = _KEY.match(data, at)
        if not found:
            raise _twice(key)
        start, at, name = found.start(1), found.end(), found[1]
        key = _STRING.decode(name) if b"\\" in name else name[1:-1].decode()
        value = members[key]
        if key in spans or not data.startswith(value, at):
            raise _twice(key)
        end = at + len(value)
        spans[key] = (start, at, end)
        at = end
    if found := _KEY.match(data, at):
        raise _twice(_STRING.decode(found[1]))
    if not _END.match(data, at):
        raise _twice(key)
    return spans


def _twice(key: str) -> BadRequest:
    return BadRequest(f"'{key[:64]}' comes twice in the request body.", param=key[:64])
