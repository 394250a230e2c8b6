"""Which conversation does a request belong to, and what was said in its turn?"""

import hmac
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.fields import Fields, Message
from gateway.policy import Policy, Sessions
from gateway.types import ChatRequest
from gateway.user_words import opening, own, speaks

NAME = 8  # bytes of a conversation's name that are recorded
PREFIX = "prefix"  # the source that is a conversation's own words
RESULTS = ("tool", "function", "assistant")
_USUAL = Sessions()
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
MARKER = "cache_control"  # a member that says where a cache of the prompt may end
MOST = 10_000  # pieces of content that are rid of it: each takes a microsecond or two


class SessionKeys(NamedTuple):
    """Under which keys a conversation's session was kept before this turn of the user's (None: it is the first), and
    will be after it. The two are the same for a conversation with an id, and within a turn."""

    known: bytes | None
    kept: bytes


def session_keys(request: ChatRequest, policy: Policy) -> SessionKeys | None:
    """The keys of the request's conversation in the store; None for a request that belongs to none."""
    found = _source(request, policy.sessions) if policy.sessions else None
    if not found:
        return None
    if found[1]:
        key = _digest(request, *found)
        return SessionKeys(key, key)
    said, before = _turns(request.fields.messages or ())
    known = _digest(request, PREFIX, "\n".join(said[:before])) if before else None
    return SessionKeys(known, _digest(request, PREFIX, "\n".join(said))) if said else None


def conversation(request: ChatRequest, policy: Policy) -> str:
    """The name of the request's conversation in records, unique to its caller; "": none. It is the same in each turn:
    without an id it is made from the first. Where the policy keeps no sessions, conversations are identified as they
    are by default."""
    found = _source(request, policy.sessions or _USUAL)
    begun = opening(request.fields.messages or ())
    said = found and (found[1] or "\n".join(f"{message.role} {message.text()}" for message in begun))
    return _digest(request, found[0], said).partition(b":")[2][:NAME].hex() if found and said else ""


def _source(request: ChatRequest, sessions: Sessions) -> tuple[str, str] | None:
    """What tells the request's conversation from others, and the id that it gives; "": its messages do."""
    metadata = request.fields.metadata or {}
    if metadata.get("session") == "none" or request.dialect.work != "answer":
        return None
    for source in sessions.key:
        kind, _, name = source.partition(":")
        given = request.headers.get(name) if kind == "header" else metadata.get(name)
        if source == PREFIX or (isinstance(given, str | int) and str(given)):
            return source, "" if source == PREFIX else str(given)
    return None


def _digest(request: ChatRequest, source: str, said: str) -> bytes:
    """A hash keyed with the caller's secret, after the kind of what it was made from ("header:", "metadata:",
    "prefix:")."""
    whole = f"session {source}\n{said}".encode("utf-8", "surrogatepass")
    return source.partition(":")[0].encode() + b":" + hmac.digest(request.caller.salt.encode(), whole, "sha256")


def _turns(messages: Sequence[Message]) -> tuple[list[str], int]:
    """What the user said, after all that stands before its first word; and how much of that came before the last
    answer, 0 in a first turn.

    An answer that somebody wrote for the model to follow (a greeting, examples) is none of ours: nothing is kept of
    the turn before it. So conversations that begin alike part with the user's first word of its own.
    """
    said: list[str] = []
    begun, before = False, 0
    for message in messages:
        if message.role in RESULTS:
            before = len(said) if begun else 0
        elif speaks(message) or not begun:
            begun = speaks(message)
            said.append(f"{message.role} {' '.join(own(message))}")
    return said, before


def continues(fields: Fields) -> bool:
    """Whether the request continues a user's turn: after a tool's result, or with an answer to complete."""
    said = reversed(fields.messages or ())
    return next((message.role in RESULTS for message in said if message.role in RESULTS or speaks(message)), False)


def pieces(fields: Fields) -> int:
    """How many pieces of content there are. Media stand in no other place, and who sets markers sends pieces: to look
    for them in all bytes of a prompt would take longer than all else that is done to ask about it."""
    return sum([len(message.content) for message in fields.messages or () if isinstance(message.content, list)])


def judged_part(request: ChatRequest, policy: Policy) -> bytes:
    """The part of the conversation that the classifier judges, in the caller's own bytes save for markers. With `unit:
    user_turn` it ends before what came of the last user message, so that the question after a tool's result is the one
    asked for its turn, whose verdict is remembered.
    """
    whole = request.dialect.conversation(request.body)
    said = _judged(request, policy, whole)
    if not 0 < pieces(request.fields) <= MOST or MARKER.encode() not in whole:
        return said
    start = len(whole) - request.body.size(request.dialect.prompt[-1])
    return said[:start] + _unmarked(said[start:])


def _judged(request: ChatRequest, policy: Policy, whole: bytes) -> bytes:
    if policy.triage.unit != "user_turn" or not continues(request.fields):
        return whole
    last = request.body.raw(request.dialect.prompt[-1]) or b""
    turns, end = _of_user(request, last), len(whole) - len(last)
    for turn in turns:
        end = whole.index(turn, end) + len(turn)
    return whole[:end] + b"]"


def _unmarked(said: bytes) -> bytes:
    """Messages without markers, which agents move from one request of a turn to the next."""
    messages = _OBJECTS.decode(said)
    for message in messages:
        message.pop(MARKER, None)
        if bytes(message.get("content", b""))[:1] == b"[":
            message["content"] = _parts(message["content"])
    return msgspec.json.encode(messages)


def _parts(content: msgspec.Raw) -> msgspec.Raw:
    """A list of content without markers; a text that was put into a list for one stands by itself."""
    parts = _OBJECTS.decode(content)
    for part in parts:
        part.pop(MARKER, None)
    alone = len(parts) == 1 and parts[0].keys() == {"type", "text"}
    return parts[0]["text"] if alone else msgspec.Raw(msgspec.json.encode(parts))


def _of_user(request: ChatRequest, said: bytes) -> list[msgspec.Raw]:
    """The elements of the conversation's array `said` up to the first that came of the last user message; all where no
    user speaks."""
    turns = _MESSAGES.decode(said)
    end = len(turns)
    for at in reversed(range(end)):
        told = request.dialect.turn(bytes(turns[at]))
        if any(map(speaks, told)):
            return turns[:end]
        if any(message.role in RESULTS for message in told):
            end = at
    return turns
