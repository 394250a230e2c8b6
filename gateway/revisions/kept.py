"""Which policies of a name were in force, as the store keeps them for all processes on it?"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.errors import UNREADABLE
from gateway.store import Store

KEPT = 20  # revisions that can be rolled back to
REVISIONS, ROLLBACK = "policy.revisions.", "policy.rollback."  # in the store, before the policy's name


class Revision(msgspec.Struct, frozen=True):
    """A policy that a file brought into force. `at`: when it last did, in Unix seconds; `digest` is the policy's,
    `calibration` the text of the calibration that it named, if it did."""

    digest: str
    name: str
    revision: str
    at: float
    text: str
    calibration: str | None = None


class Rollback(msgspec.Struct, frozen=True):
    """An earlier revision's text and calibration, in force in place of the file's as long as the file has the
    fingerprint `instead_of`, and the calibration that it names the one in `beside`, by its name: a change of either
    ends the rollback.
    """

    instead_of: str
    digest: str
    text: str
    at: float
    calibration: str | None = None
    beside: dict[str, str] = {}

    def replaced(self, path: Path) -> dict[str, str]:
        """The fingerprints by the files' paths, where the policy's is at `path`."""
        return {str(path): self.instead_of, **{str(path.parent / name): told for name, told in self.beside.items()}}


class History:
    """The revisions of the policy `name` in the store, and its rollback. All methods raise Overloaded."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._revisions, self._rollback = store, REVISIONS + name, ROLLBACK + name

    async def revisions(self) -> list[Revision]:
        """The newest first; none where they are unreadable."""
        with contextlib.suppress(*UNREADABLE):
            return msgspec.json.decode(await self._store.kept(self._revisions) or b"[]", type=list[Revision])
        return []

    async def keep_revisions(self, revisions: Sequence[Revision]) -> None:
        await self._store.keep(self._revisions, msgspec.json.encode(revisions))

    async def rollback(self, known: Rollback | None = None) -> Rollback | None:
        """The rollback, None where it was taken back. `known` stays, and is kept again, where the store has lost what
        it held of it. Raises also what is UNREADABLE."""
        found = await self._store.kept(self._rollback)
        if found is None and known:
            await self.keep_rollback(known)
        return known if found is None else msgspec.json.decode(found, type=Rollback | None)

    async def keep_rollback(self, rollback: Rollback | None) -> None:
        """None says that it was taken back."""
        await self._store.keep(self._rollback, msgspec.json.encode(rollback))

    async def last(self) -> Revision | Rollback | None:
        """What came into force last, by the file or by the rollback."""
        found: list[Revision | Rollback] = [*await self.revisions()]
        with contextlib.suppress(*UNREADABLE):
            found += filter(None, [await self.rollback()])
        return max(found, key=lambda one: one.at, default=None)


def merged(ones: Sequence[Revision], others: Sequence[Revision]) -> list[Revision]:
    """Both lists as one: each digest once, with its latest time, the newest first, KEPT at most."""
    newest = {one.digest: one for one in sorted([*others, *ones], key=lambda revision: revision.at)}
    return sorted(newest.values(), key=lambda revision: -revision.at)[:KEPT]
