"""Which policy is in force: the file's, or an earlier one in its place?"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from gateway.errors import UNREADABLE, BadRequest, NotFound, Overloaded
from gateway.ids import fingerprint
from gateway.policy import Policy, PolicyError, Problem, calibration_name, file_text
from gateway.revisions.kept import History, Revision, Rollback, merged
from gateway.revisions.watch import Watch, folders
from gateway.store import Store
from gateway.verify import Attempt, Texts, Trial, attempted

POLL = 1.0  # seconds between two looks where the kernel tells of no change; another process's rollback is seen so late
SETTLE = 0.05  # seconds for which a changed file must stay the same before it is read: it may be half written
UNSETTLED = 20  # looks at files that keep changing; then they are read as they are
TOLD = 10  # problems in /ready
TICK = 0.001  # seconds from one revision to the next where the clock of who wrote that one was ahead of ours
PREVIOUS = "previous"
log = logging.getLogger("gateway")


class Revisions:
    """Follows the file at `path` (None: there is none) while it runs, and looks at it when told to.

    `policy` is in force since `since`; `text` is its text: the file's, or that of `rollback` where there is one, and
    `calibration` that of the calibration that it names. `use` is called with each policy that comes into force, `count`
    with the result of each attempt (accepted, rejected). `problems` are those of the last attempt, made at `at`;
    `trials` the results of the tests of the policy in force.
    Rollback and revisions are kept in the store, for all processes on it that began with a policy of this name; in a
    memory store they end with the process.
    """

    def __init__(
        self,
        path: Path | None,
        policy: Policy,
        store: Store,
        use: Callable[[Policy], None],
        count: Callable[[str], None],
    ) -> None:
        self.path, self.policy, self._use, self._count = path, policy, use, count
        self._history = History(store, policy.name)
        self.text: str | None = None
        self.calibration: str | None = None
        self.since = self.at = time.time()
        self.problems: Sequence[Problem] = ()
        self.trials: Sequence[Trial] = ()
        self.rollback: Rollback | None = None
        self._found: Rollback | None = None  # in the store, whether it counts or not
        # Which was taken back, or a change of our files ended; on other hosts the files may not have changed yet.
        self._ended: Rollback | None = None
        self._files: Texts = {}
        self._tried: Rollback | None = None
        self._known: list[Revision] = []
        self._looking = asyncio.Lock()
        self._watch: Watch | None = None
        self._nudged = False

    @property
    def files(self) -> Collection[str]:
        """The files that the policy was last read from: its own, and those that it names."""
        return self._files.keys()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        self._watch = watch = Watch()
        try:
            while True:
                watch.look(await asyncio.to_thread(folders, list(self._files)))
                await watch.wait(POLL)
                nudged, self._nudged = self._nudged, False
                await self.look(again=nudged)
        finally:
            watch.close()

    def nudge(self) -> None:
        """Look at once, and try the file again even if it is the same."""
        self._nudged = True
        if self._watch:
            self._watch.wake()

    async def look(self, *, again: bool = False) -> bool:
        """Load the file, or the rollback in its place, if either changed (`again`: in any case). True when it was
        loaded, whether or not it was right."""
        if self.path is None:
            return False
        async with self._looking:
            await self._learn()
            was = self._found.replaced(self.path) if self._found else {str(self.path): ""}
            files = await self._settled(list({**was, **self._files}))
            lost = self._found != self._ended  # a file that is gone ends no rollback, and brings none back
            same = (lost if (said := files[name]) is None else fingerprint(said) == told for name, told in was.items())
            rollback = await self._counting(self._found if all(same) else None)
            alike = not again and files == self._files and rollback == self._tried
            if alike and (rollback or files[str(self.path)] is not None):
                return False
            text, calibration = (rollback.text, rollback.calibration) if rollback else (None, None)
            found = await asyncio.to_thread(attempted, self.path, text, calibration=calibration)
            if alike and found.problems == self.problems:  # it cannot be read, for the same reason
                return False
            self._files, self._tried = {**found.files, **{name: files[name] for name in was}}, rollback
            await self._take(found, rollback)
            return True

    async def roll_back(self, to: str) -> Revision:
        """Put the revision with this digest, or the PREVIOUS one, in force in place of the file, in every process on
        the store. Raises NotFound, BadRequest where it does not pass the checks any more or would be another policy by
        now, Overloaded.
        """
        path, known = self._followed(), await self.known()
        digests = [one.digest for one in known]
        here = digests.index(self.policy.digest) if self.policy.digest in digests else -1
        wanted = here + 1 if to == PREVIOUS else digests.index(to) if to in digests else len(known)
        if wanted >= len(known):
            raise NotFound(f"No revision {to!r} is kept; kept are: {', '.join(digests) or 'none'}.", param="to")
        revision = known[wanted]
        made = await asyncio.to_thread(rollback_to, revision, path)
        await self._history.keep_rollback(made)
        await self.look()
        return revision

    async def roll_forward(self) -> None:
        """End the rollback: the file is in force again. Raises Overloaded."""
        self._followed()
        await self._history.keep_rollback(None)
        await self.look()

    def told(self) -> dict[str, object]:
        """For /ready: whether the file or a rollback is in force, and what is wrong with the file."""
        return {"source": "rollback" if self.rollback else "file", "problems": [*map(str, self.problems[:TOLD])]}

    async def known(self) -> list[Revision]:
        """The revisions that can be rolled back to, the newest first."""
        with contextlib.suppress(Overloaded):
            self._known = merged(self._known, await self._history.revisions())
        return self._known

    def note(self) -> str:
        """A sentence for the operator who rolled back or undid that: what is in force, and until when."""
        if not self.rollback:
            return f"{self.path} counts."
        if not self._found:
            return f"{self.path} is to count again, and is wrong: until it is right, what was in force stays."
        return (
            f"{self.path} still says otherwise. It counts again as soon as it or its calibration changes, or when the"
            " rollback is taken back (`tiergate policy rollback --undo`). To make this one last, write it to the file."
        )

    def _followed(self) -> Path:
        if self.path is None:
            raise BadRequest("This gateway follows no policy file.", code="no_policy_file")
        return self.path

    async def _learn(self) -> None:
        """Read the rollback from the store; while that does not answer or has lost it, the last known one stands."""
        with contextlib.suppress(Overloaded, *UNREADABLE):
            known, self._found = self._found, await self._history.rollback(self._found)
            if known and not self._found:
                self._ended = known

    async def _counting(self, standing: Rollback | None) -> Rollback | None:
        """The rollback that stands by the files, unless it ended: then it goes from the store, too."""
        if standing is None:
            self._ended = self._found or self._ended
        elif standing == self._ended:
            with contextlib.suppress(Overloaded):
                await self._history.keep_rollback(None)
            return None
        return standing

    async def _settled(self, names: Sequence[str]) -> Texts:
        """The texts of the files, once they stopped changing."""
        files = await asyncio.to_thread(texts, names)
        for _ in range(UNSETTLED):
            if files == self._files:
                break
            before = files
            await asyncio.sleep(SETTLE)
            files = await asyncio.to_thread(texts, names)
            if files == before:
                break
        return files

    async def _take(self, found: Attempt, rollback: Rollback | None) -> None:
        said, self.problems, self.at = self.problems, found.problems, time.time()
        self._count("accepted" if found.policy else "rejected")
        if not found.policy:
            if found.problems != said:
                log.warning("policy: %s stays in force: %s", self.policy, "; ".join(map(str, found.problems)))
            if self.text is None:  # the process began with what had been in force before it
                ones: list[Revision | Rollback] = [*await self.known(), *filter(None, [self._found])]
                alike = [one for one in ones if one.digest == self.policy.digest]
                was = max(alike, key=lambda one: one.at, default=None)
                self.text, self.calibration = (was.text, was.calibration) if was else (None, None)
                self.rollback = was if isinstance(was, Rollback) else None
            return
        text = found.files[str(self.path)]
        same = identity(found.policy) == identity(self.policy)
        self.text, self.trials, self.rollback = text, found.trials, rollback
        self.calibration = found.document.calibration if found.document else None
        if not same:
            self.policy, self.since = found.policy, self.at
            self._use(found.policy)
        if said or not same:
            log.warning("policy: %s is in force%s", self.policy, ", by a rollback" if rollback else "")
        if not rollback and text is not None:
            await self._keep(text)

    async def _keep(self, text: str) -> None:
        """Add the policy in force, whose text this is, to the revisions in the store."""
        policy, known = self.policy, await self.known()
        if known and (known[0].digest, known[0].calibration) == (policy.digest, self.calibration):
            return
        now = max(time.time(), known[0].at + TICK if known else 0.0)
        revision = Revision(policy.digest, policy.name, policy.revision, now, text, self.calibration)
        self._known = merged([revision], known)
        with contextlib.suppress(Overloaded):
            await self._history.keep_revisions(self._known)


def rollback_to(revision: Revision, path: Path) -> Rollback | None:
    """What puts the revision in force; None where the files say the same. Raises BadRequest, as `roll_back`."""
    digest, found = revision.digest, attempted(path, revision.text, calibration=revision.calibration)
    if not found.policy:
        raise BadRequest(f"Revision {digest} is wrong by now: {found.problems[0]}", param="to")
    if found.policy.digest != digest:
        told = f"Revision {digest} went by other embeddings, or by a calibration that was not kept: put that back."
        raise BadRequest(told, param="to")
    here = attempted(path)
    if here.policy and here.policy.digest == digest:
        return None
    name = calibration_name(here.document) if here.document else None
    beside = {name: fingerprint(_text(path.parent / name) or "")} if name else {}
    return Rollback(fingerprint(_text(path) or ""), digest, revision.text, time.time(), revision.calibration, beside)


def texts(names: Sequence[str]) -> Texts:
    return {name: _text(Path(name)) for name in names}


def _text(path: Path) -> str | None:
    try:
        return file_text(path)
    except PolicyError:
        return None


def identity(policy: Policy) -> tuple[str, str | None]:
    return policy.digest, policy.candidate.policy.digest if policy.candidate else None
