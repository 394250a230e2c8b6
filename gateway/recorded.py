"""What is recorded of an exchange, and how does a recorded decision look as a line of JSON?   No prompt text."""

import errno
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from gateway.errors import UNREADABLE
from gateway.store import Line
from gateway.trace import Trace
from gateway.types import Caller, Decision, Facts, Held, Route, Usage, Verdict

VERSION: Literal[1] = 1
# Phases of the gateway's own time before the first byte. read: until the request is parsed; decide: from there until a
# model server is asked for the first time, or to the first byte where none is; relay: the rest.
PHASES = ("read", "decide", "relay")
SHADOW = "shadow"  # source of outcomes that are the agreement with another tier's answer, and no judgement
RETRY = "retry"  # and of those that tell no more than that the same was asked again
WEAK = (RETRY, SHADOW)  # none replaces one that comes later here, nor a judgement
PACKED = b"\x1f\x8b"  # how a file begins that gzip packed
Quality = Annotated[float, msgspec.Meta(ge=0, le=1)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Seconds = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]  # since 1970; milliseconds are more


class Record(msgspec.Struct, frozen=True, gc=False):
    """What became of one exchange; no prompt text. Times in seconds; `ttft` None when no byte of an answer was sent.

    `status` 499: the caller left before the end. `overhead` is the time before the first byte that was spent neither on
    model servers nor on the caller's sending; None when there was no first byte. `error` is the code of a Refusal or of
    the server, also of one in mid-stream. `costs` is what the calls for it come to, `limited` the limit that refused
    it. `phases` are what `overhead` was spent on (PHASES). `trace`: where it is sampled. `user`: who asked behind the
    caller's key.
    """

    id: str
    path: str
    status: int
    seconds: float
    overhead: float | None
    policy: str
    ttft: float | None = None
    caller: Caller | None = None
    model: str | None = None
    stream: bool = False
    tier: str | None = None
    route: Route | None = None
    decision: Decision | None = None
    cache: str = "bypass"
    usage: Usage | None = None
    error: str | None = None
    costs: Sequence[Line] = ()
    limited: str | None = None
    phases: Sequence[float] = ()
    trace: Trace | None = None
    user: str | None = None


def phases(overhead: float | None, read: float, decide: float | None) -> tuple[float, ...]:
    """Seconds of each of PHASES; `decide` None: no model server was asked. () without an overhead."""
    if overhead is None:
        return ()
    rest = overhead - read if overhead > read else 0.0
    return (read, decide, rest - decide) if decide is not None and decide < rest else (read, rest, 0.0)


class RecordError(Exception):
    """A line, or a fact in it, that cannot be read; the message says which."""


class Seen(msgspec.Struct, frozen=True):
    """What the gateway looked at under the policy in force: a rule about anything else cannot be replayed on the
    record.

    `signals` maps names to fingerprints of their patterns; `tiers` are those whose load was seen, as they rank;
    `question` names what the classifier was asked, and of which model. `sessions`: conversations were told apart.
    `table`: the digest of the embeddings that gave the score, "" for the surface's. `starts`: by tier whose answers
    were kept back at first, what was looked at; None: the record does not say.
    """

    signals: dict[str, str]
    headers: tuple[str, ...]
    tiers: tuple[str, ...]
    question: str
    sessions: bool = False
    table: str = ""
    starts: dict[str, str] | None = None


class Chosen(msgspec.Struct, frozen=True):
    """The route. `p` is the propensity: how likely chance made `tier` the first choice; `chances` are those of every
    tier that it could have been, {} when only one could be."""

    tier: str
    p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    tiers: tuple[str, ...] = ()
    rule: str = ""
    reason: str = ""
    chances: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1)]] = {}

    @property
    def logged(self) -> dict[str, float]:
        """The propensity of each tier; tiers that are missing could not be chosen."""
        return {tier: p for tier, p in self.chances.items() if p} or {self.tier: 1.0}


class Used(msgspec.Struct, frozen=True, gc=False):
    """Tokens of the answer, as the server counted them; None where it did not say."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How good the answer was, 0 to 1, and who says so. `tiers`: how good other tiers' answers to the same request
    were, where somebody made and judged them."""

    quality: Quality
    source: Word = "caller"
    tiers: Annotated[dict[Word, Quality], msgspec.Meta(max_length=8)] = {}

    def over(self, known: "Outcome | None") -> "Outcome":
        """The one of two outcomes of a request that counts, where `known` came first: the later one, save that a weaker
        one (WEAK) never replaces a stronger one."""
        return known if known and self.strength < known.strength else self

    @property
    def strength(self) -> int:
        return WEAK.index(self.source) if self.source in WEAK else len(WEAK)


class Recorded(msgspec.Struct, kw_only=True):
    """One decision and what came of it. `at`: when the answer ended, in seconds since 1970; `caller` is an id, and
    `conversation` a name among that caller's, "" where it is not known.

    `facts` are those of Facts, by name, as of the version that wrote them. `tier` answered (failover may have changed
    it), None when nobody did, and `skips` is how its servers skipped experts. `seconds` and `ttft` as in Record.
    """

    v: Literal[1] = VERSION
    id: str
    route: Chosen
    facts: dict[str, Any]
    caller: str = ""
    conversation: str = ""
    at: Seconds = 0.0
    policy: str = ""
    seen: Seen | None = None
    verdict: Verdict | None = None
    held: Held | None = None
    tier: str | None = None
    skips: str | None = None
    status: int = 200
    seconds: float = 0.0
    ttft: float | None = None
    used: Used | None = None
    outcome: Outcome | None = None

    def read_facts(self) -> Facts:
        """Raises RecordError when a fact has not the type that it has in Facts."""
        try:
            return msgspec.convert(self.facts, Facts)
        except msgspec.ValidationError as error:
            raise RecordError(f"record {self.id}: facts: {error}") from None


R = TypeVar("R", bound=Recorded)
T = TypeVar("T")


class LateOutcome(msgspec.Struct, kw_only=True):
    """An outcome that came after its decision was written."""

    v: Literal[1] = VERSION
    id: str
    caller: str
    at: float
    outcome: Outcome


class Ended(msgspec.Struct):
    """The part of a line that tells when its answer ended."""

    at: float = 0.0


class Once:
    """Gives the first of equal values: much of what many records hold is alike."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}

    def __call__(self, value: T) -> T:
        found: T = self._known.setdefault(msgspec.json.encode(value), value)
        return found


_ANY, _ENDED = msgspec.json.Decoder(dict[str, Any]), msgspec.json.Decoder(Ended)


def newest(lines: Iterable[bytes], most: int) -> list[bytes]:
    """The newest of the lines of several processes, the newest last."""
    return sorted(lines, key=lambda line: _ENDED.decode(line).at)[-most:]


def gather(
    files: Sequence[Path], keep: Callable[[Recorded], R], heard: Callable[[bytes], None] | None = None
) -> list[R]:
    """What `keep` leaves of the decisions of some files, each with its last outcome, in the order of the lines; of two
    decisions of one caller with one id the later counts. A file's last line may be half there: its gateway writes it.
    `heard` gets each line as it is read. Raises RecordError, and what `keep` raises."""
    found: dict[tuple[str, str], R] = {}
    late: dict[tuple[str, str], Outcome] = {}
    for place, line in (pair for path in files for pair in _lines(path)):
        one = _parsed(line, place)
        if heard:
            heard(line)
        if isinstance(one, LateOutcome):
            late[one.caller, one.id] = one.outcome.over(late.get((one.caller, one.id)))
        else:
            found[one.caller, one.id] = keep(one)
    for name, outcome in late.items():
        if name in found:
            found[name].outcome = outcome.over(found[name].outcome)
    return list(found.values())


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, also of one that gzip packed, as those do that rotate logs. Raises OSError."""
    with path.open("rb") as file, gzip.open(file) if file.peek(2).startswith(PACKED) else file as lines:
        try:
            yield from lines
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise OSError(errno.EIO, f"gzip: {error}", str(path)) from None


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        told = (pair for pair in enumerate(lines_of(path), 1) if pair[1].strip() and not _breaks_off(pair[1]))
        yield from ((f"{path}:{number}", line) for number, line in told)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None


def _breaks_off(line: bytes) -> bool:
    if line.endswith(b"\n") or not line.startswith(b"{"):
        return False
    try:
        _ANY.decode(line)
    except UNREADABLE:
        return True
    return False


def _parsed(line: bytes, place: str) -> Recorded | LateOutcome:
    try:
        data = _ANY.decode(line)
        if data.get("v") != VERSION:
            raise RecordError(f"{place}: version {data.get('v')!r}; this program reads {VERSION}")
        return msgspec.convert(data, Recorded) if "facts" in data else msgspec.convert(data, LateOutcome)
    except UNREADABLE as error:
        raise RecordError(f"{place}: {error}") from None
