"""Which shares must verdicts choose, so that all requests together come to the wanted shares?

Of all requests some have their tier without a verdict (a rule that names it, a cap, a conversation's own), and of the
others chance sends some another way (`explore`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.calibrate.outcomes import Example


@dataclass(frozen=True, slots=True)
class Mix:
    """`fixed`: by band, the part of all requests that goes there without a verdict; `explore`: the part of the others
    that chance sends to one of the other bands."""

    fixed: tuple[float, ...]
    explore: float = 0.0

    @property
    def by_chance(self) -> float:
        """The part of what a verdict sends elsewhere that comes to a band."""
        return self.explore / (len(self.fixed) - 1)

    def realised(self, band: int, chosen: float) -> float:
        """The part of all requests that comes to a band, where verdicts choose it for the part `chosen` of theirs."""
        came = self.by_chance + (1 - self.explore - self.by_chance) * chosen
        return self.fixed[band] + (1 - sum(self.fixed)) * came

    def chosen(self, wanted: Sequence[float]) -> tuple[float, ...]:
        """What verdicts are to choose so that the wanted parts of all requests are realised; some are not above 0 where
        nothing does that."""
        least = [self.realised(band, 0.0) for band in range(len(wanted))]
        each = (1 - sum(self.fixed)) * (1 - self.explore - self.by_chance)
        return tuple((share - came) / each if each > 0 else 0.0 for share, came in zip(wanted, least, strict=True))


def mix_of(records: Sequence[Example], bands: int, explore: float | None = None) -> Mix:
    """The Mix of these records; `explore` in place of what they show. Tiers above the last band count as that."""
    ways = Counter(min(one.fixed, bands - 1) for one in records if one.fixed is not None)
    drawn = [one.explored for one in records if one.fixed is None]
    shown = sum(drawn) / (len(drawn) or 1)
    fixed = tuple(ways[band] / (len(records) or 1) for band in range(bands))
    return Mix(fixed, shown if explore is None else explore)
