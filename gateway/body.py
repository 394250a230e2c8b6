"""Which bytes of a request body do we read, and which may change?

A body is parsed once. What we decide on is decoded into `Fields`; the rest stays the client's own bytes. `Body.edit`
replaces, drops or adds whole top-level members and leaves every other byte alone.
"""

import math
import operator
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, TypeVar

import msgspec

from gateway.errors import UNREADABLE, BadRequest

MAX_CHOICES = 16  # `n` multiplies the work of one request; vLLM ran out of memory on huge values (CVE-2026-34756)
MAX_PROMPTS = 2048  # of a request, times `n`: each is a job of its own to a server; OpenAI's bound for embeddings
MAX_TOKENS = 1 << 32  # more than any model makes; of so many, stores can add up what they cost in 64 bits
# What a body may hold at most, where we look at each: a megabyte of text costs 1 ms, a megabyte of empty objects 500.
MAX_VALUES = 1 << 20  # objects, arrays and members in all; as text they would fill a context of a million tokens
MAX_MESSAGES = 100_000  # Anthropic's own bound; of messages, and of one's pieces
MAX_MEMBERS = 1024  # of an object that may be edited
MAX_TOOLS = 4096
MAX_OPTION = 1 << 18  # bytes of a member of OPTIONS, which are decoded whole
OPTIONS = ("stream_options", "response_format", "chat_template_kwargs", "metadata",
           "structured_outputs", "text", "output_config")  # fmt: skip
MAX_LIST = 1 << 13  # bytes of a list that vLLM goes through at each token: 500,000 stops took it 54 s (PR 51447)
LISTS = ("stop", "stop_sequences", "stop_token_ids", "bad_words")
LONGEST = dict.fromkeys(LISTS, MAX_LIST) | dict.fromkeys(OPTIONS, MAX_OPTION)
SPARE = 100  # frames by which the stack may be deeper when an accepted body is decoded again
SPACE = ord(" ")
SHORT = 1 << 14  # bytes of a body that is copied once more, to save walking through it
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
Prompt = str | Prompts[str | int | Prompts[str | int]]
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
    uuid: str | int | None = None  # by which vLLM finds media that came before, whoever sent them

    def urls(self) -> list[str]:
        """Every address in this piece; which of them a server follows is the server's choice."""
        links = (self.image_url, self.video_url, self.audio_url, self.file_url)
        return [url for link in links if (url := link.url if isinstance(link, Link) else link) is not None]


class Message(msgspec.Struct, gc=False):
    role: str
    content: str | Turns[Part] | None = None

    def text(self) -> str:
        """The words of this message, media left out."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class Fields(msgspec.Struct, gc=False):
    """The fields that we decide on, type-checked; `null` means absent, as in OpenAI's API."""

    model: str | None = None
    messages: Turns[Message] | None = None
    prompt: Prompt | None = None
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

    def prompts(self) -> int:
        """How many prompts these are; a list of token ids is one."""
        said = self.prompt
        return len(said) if isinstance(said, list) and said and not isinstance(said[0], int) else 1


def real(text: str) -> float:
    """A number where any value may stand: msgspec's own way takes 15 us for one like 1e300, so 2 s for a megabyte of
    them, this one half a microsecond (0.22.0, 2026-11-23). Raises ValueError."""
    if math.isinf(found := float(text)):
        raise ValueError("Number out of range")
    return found


def _below(calls: int, decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """`decode`, called so many frames deeper, so that Python refuses nesting that much earlier."""
    call: Callable[..., T] = operator.call  # C, a third of what a call of ours takes
    for _ in range(calls):
        decode = partial(call, decode)
    return decode


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_MEMBERS_BELOW = _below(SPARE, _MEMBERS)
_FIELDS = msgspec.json.Decoder(Fields, float_hook=real)
_STRING = msgspec.json.Decoder(str)


class Body:
    """A JSON object as bytes.

    `members`: each value's own bytes, in their order. `pieces`, joined, are the object: what comes before its first
    member, room for new ones, then what stands before a value (its key) and the value, in turn, and what comes last.
    """

    __slots__ = ("members", "pieces")

    def __init__(self, data: bytes) -> None:
        """Raises BadRequest when `data` is not one JSON object with unique keys, or holds too much."""
        if len(data) > MAX_VALUES and sum(map(data.count, (b"{", b"[", b":"))) > MAX_VALUES:
            raise BadRequest("The request body has too many objects, arrays and members.")
        try:
            self.members = members = (_MEMBERS if len(data) <= SHALLOW else _MEMBERS_BELOW)(data)
        except UNREADABLE as error:
            raise _refused(error) from None
        if len(members) > MAX_MEMBERS:
            raise BadRequest(f"An object of the request has more than {MAX_MEMBERS} members.")
        self.pieces = _usual(data, members) or _walked(data, members)

    def raw(self, key: str) -> bytes | None:
        """The value's own bytes; None when the key is absent or null."""
        value = self.members.get(key)
        if value is None:
            return None
        found = bytes(value)
        return None if found == b"null" else found

    def size(self, key: str) -> int:
        """How many bytes `raw` has; 0 for None."""
        value = self.members.get(key)
        if value is None:
            return 0
        size = len(value)
        return 0 if size == 4 and bytes(value) == b"null" else size

    def edit(self, changes: Mapping[str, bytes | None], added: bytes = b"") -> bytes:
        """The same object with `changes` applied: bytes replace or add a member, None drops it. `added` is text of
        members that it has not, each with a comma behind it."""
        members, pieces, dropped = self.members, self.pieces.copy(), not self.members
        for key, value in changes.items():
            if key in members:
                pieces[2 * operator.indexOf(members, key) + 3] = value or b""
                dropped = dropped or value is None
            elif value is not None:
                added += b"%b:%b," % (msgspec.json.encode(key), value)
        pieces[1] = added
        return _dropped(pieces) if dropped else b"".join(pieces)


def _dropped(pieces: list[bytes]) -> bytes:
    """The pieces joined, without the members whose value is empty."""
    before, values = pieces[2:-1:2], pieces[3::2]
    left = [pieces[0], pieces[1].removesuffix(b",")]
    first = not left[1]
    for at, value in enumerate(values):
        if not value:
            continue
        if first and at:
            before[at] = before[at].replace(b",", b"", 1)
        elif not (first or at):
            before[at] = b"," + before[at]
        left += before[at], value
        first = False
    left.append(pieces[-1])
    return b"".join(left)


def read_as(shape: "msgspec.json.Decoder[T]", data: bytes) -> tuple[Body, T]:
    """The body and its decoded fields. Raises BadRequest with the field's name as `param`.

    What is accepted can be decoded again: it is UTF-8 after its byte order mark, if any, and not nested so deep that a
    caller's stack decides.
    """
    if not data.isascii():
        try:
            str(data, "utf-8")
        except UnicodeDecodeError as error:
            told = f"The request body is not valid UTF-8: {error.reason} at byte {error.start}. Send it uncompressed."
            raise BadRequest(told) from None
        data = data.removeprefix(BOM_UTF8)
    body = Body(data)
    for name, most in LONGEST.items() if len(data) > MAX_LIST else ():
        if body.size(name) > most:
            raise BadRequest(f"'{name}' is over {most} bytes.", param=name)
    try:
        return body, shape.decode(data)
    except UNREADABLE as error:
        raise _refused(error) from None


read = partial(read_as, _FIELDS)


def _refused(error: Exception) -> BadRequest:
    if isinstance(error, msgspec.ValidationError):
        return _invalid(str(error))
    if isinstance(error, RecursionError):
        return BadRequest("The request body is nested too deeply.")
    return BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json")


def _invalid(text: str) -> BadRequest:
    """From msgspec's "what - at `$.path`"; a member of free mappings is named by the mapping."""
    found = _PATH.search(text)
    what, where = (text[: found.start()], found.group(1).partition("[...]")[0]) if found else (text, "")
    if missing := _MISSING.match(what):
        where = f"{where}.{missing.group(1)}".lstrip(".")
    return BadRequest(f"Invalid value for '{where}': {what}." if where else f"{what}.", param=where or None)


def _usual(data: bytes, members: dict[str, msgspec.Raw]) -> list[bytes] | None:
    """The pieces of an object as libraries write one: a space after each colon and comma, or none; None: it is not, or
    so long that walking is no more work than putting it together.

    Plain names and whole values, each once and put together so, can be read in one way only: no key comes twice.
    """
    frames = _frames(*members) if members and len(data) <= SHORT else None
    if not frames:
        return None
    at, compact, spaced = frames
    pieces = [*(spaced if data[at] == SPACE else compact)]
    pieces[3::2] = members.values()
    return pieces if b"".join(pieces) == data else None


@lru_cache(maxsize=128)  # of SHORT bodies
def _frames(*names: str) -> tuple[int, tuple[bytes, ...], tuple[bytes, ...]] | None:
    """Where the first value stands, or the space before it; the pieces without their values, as written without spaces
    and with them. None where a name has a character that JSON might write in another way."""
    if not "".join(names).isidentifier():
        return None
    return len(names[0]) + 4, _frame(":", ",", names), _frame(": ", ", ", names)


def _frame(colon: str, comma: str, names: Sequence[str]) -> tuple[bytes, ...]:
    joint = f'"{colon}\n\n{comma}"'
    return tuple(f'{{\n\n"{joint.join(names)}"{colon}\n\n}}'.encode().split(b"\n"))


def _walked(data: bytes, members: dict[str, msgspec.Raw]) -> list[bytes]:
    """The pieces of any object. A key that comes twice is refused: two readers could read two different requests.

    `members` holds the last value of each key. A value that does not stand where its key first comes, a key met again
    and members beyond the last are what a second coming looks like.
    """
    at, key = data.index(b"{") + 1, ""
    pieces, seen = [data[:at], b""], set[str]()
    for _ in members:
        found = _KEY.match(data, at)
        if not found:
            raise _twice(key)
        start, at, name = at, found.end(), found[1]
        key = _STRING.decode(name) if b"\\" in name else name[1:-1].decode()
        value = members[key]
        if key in seen or not data.startswith(value, at):
            raise _twice(key)
        seen.add(key)
        pieces += data[start:at], value
        at += len(value)
    if found := _KEY.match(data, at):
        raise _twice(_STRING.decode(found[1]))
    if not _END.match(data, at):
        raise _twice(key)
    return [*pieces, data[at:]]


def _twice(key: str) -> BadRequest:
    return BadRequest(f"'{key[:64]}' comes twice in the request body.", param=key[:64])
