"""What became of decisions?   One JSON object a line, versioned; no prompt text."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class RecordError(Exception):
    """A line that cannot be read; the message names it."""


class SaidVerdict(msgspec.Struct, frozen=True):
    """The classifier's answer; `p_complex` None when it gave no probability."""

    p_complex: Probability | None = None


class Outcome(msgspec.Struct, frozen=True):
    """Whether each tier's answer was good; None: not known."""

    flash_ok: bool | None = None
    pro_ok: bool | None = None


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. `at` in seconds since 1970; `set` groups requests of one kind; `measures` as in a Score.

    Other members of a line are left unread.
    """

    v: Literal[1]
    id: str
    score: Probability
    at: float | None = None
    set: str | None = None
    measures: dict[str, float] = msgspec.field(default_factory=dict)
    verdict: SaidVerdict | None = None
    outcome: Outcome | None = None

    @property
    def p_complex(self) -> float | None:
        return self.verdict.p_complex if self.verdict else None

    @property
    def needed(self) -> bool | None:
        """Whether Pro was needed: Flash failed, and Pro did not where that is known. None without an outcome."""
        if self.outcome is None or self.outcome.flash_ok is None:
            return None
        return not self.outcome.flash_ok and self.outcome.pro_ok is not False

    @property
    def failed(self) -> bool | None:
        """Whether Flash's answer was bad. None without an outcome."""
        return None if self.outcome is None or self.outcome.flash_ok is None else not self.outcome.flash_ok

    @property
    def gain(self) -> int | None:
        """What Pro's answer is worth above Flash's: 1, 0 or -1; as `needed` where Pro's outcome is not known."""
        if self.needed is None or self.outcome is None:
            return None
        worse = self.outcome.flash_ok is True and self.outcome.pro_ok is False
        return -1 if worse else int(self.needed)


_LINE = msgspec.json.Decoder(Example)


def read(lines: Iterable[bytes]) -> tuple[list[Example], str]:
    """The decisions of a file, and the SHA-256 of its bytes. Of two lines with one id, the later counts.

    Raises RecordError at the first line that is no decision of this version.
    """
    digest = hashlib.sha256()
    found: dict[str, Example] = {}
    for number, line in enumerate(lines, 1):
        digest.update(line)
        if not line.strip():
            continue
        try:
            one = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError(f"line {number}: {error}") from None
        found[one.id] = one
    return list(found.values()), digest.hexdigest()


def line(one: Example) -> bytes:
    """The decision as its line."""
    return msgspec.json.encode(one) + b"\n"


def told(one: Example) -> Mapping[str, float]:
    """The numbers that a decision was made on, by name: score, p_complex where known, and the measures."""
    verdict = {} if one.p_complex is None else {"p_complex": one.p_complex}
    return {"score": one.score, **verdict, **one.measures}
