"""Which keys does a file hold?   For set-ups without a shared store, or with all configuration in files (GitOps).

    schema: 1
    secret: 0f3a...                   # 64 hex digits
    keys:                             # records as the store keeps them, without the keys themselves
      - {id: 5d0c63ab12f9, hash: 91be..., name: my-app, created: 1772323200.0, plan: gold}

YAML or JSON, a few thousand keys at most; `tiergate keys create --file FILE` makes it and writes JSON.

`secret` keys the hashes. It stands in the file beside them, so that processes need the file and nothing else. Who reads
the file learns no key all the same: keys have 256 random bits. `secret: ${NAME}` takes it from the environment, for a
file that is kept in public.
"""

import asyncio
import dataclasses
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.key_records import window_problem
from gateway.policy import Document, PolicyError, file_text, read_document, suggestion
from gateway.store import KeyRecord

SETTLE = 0.05  # seconds for which a changed file must stay the same before it counts: it may be half written
LOOK = 0.4  # seconds between two looks at the file: a revoked key is refused within a second
TOP = ("schema", "secret", "keys")
FIELDS = tuple(field.name for field in dataclasses.fields(KeyRecord))
HEX = re.compile("[0-9a-f]{64}")
POSITIVE = ("requests_per_minute", "tokens_per_minute", "usd")
log = logging.getLogger("gateway")


@dataclasses.dataclass(frozen=True, slots=True)
class KeyFileData:
    """What a file holds; records by id, the first in the file first."""

    secret: bytes
    records: Mapping[str, KeyRecord]


class KeyFile:
    """The keys of a file, followed as it changes; while it is missing or invalid, those of its last valid version.

    The whole text is compared each time: modification time and size may survive a quick change, and a symbolic link
    that is swapped (a ConfigMap) needs no special case. `problem` says what is wrong with the file, None: nothing.
    """

    def __init__(self, path: Path) -> None:
        """Raises PolicyError when the file cannot be read or is wrong."""
        self._path = path
        self._text: str | None = file_text(path)
        self._held = read_keys(self._text, str(path))
        self.problem: str | None = None

    def find(self, key_id: str) -> tuple[KeyRecord, bytes] | None:
        """A record, revoked or not, and the secret that its hash is keyed with."""
        held = self._held
        record = held.records.get(key_id)
        return None if record is None else (record, held.secret)

    def records(self) -> list[KeyRecord]:
        return list(self._held.records.values())

    async def watch(self) -> None:
        """Look at the file until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the file and use its keys if it changed, stays so and is valid; logs when it becomes invalid, and valid
        again."""
        try:
            text = file_text(self._path)
            if text != self._text:
                time.sleep(SETTLE)
                if file_text(self._path) != text:
                    return
        except PolicyError as error:
            self._text = None
            self._tell(str(error))
            return
        if text == self._text:
            return
        self._text = text
        try:
            self._held = read_keys(text, str(self._path))
            self._tell(None)
        except PolicyError as error:
            self._tell(str(error))

    def _tell(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            log.warning("keys: those read before stay in force: %s", problem.replace("\n", "; "))
        elif self.problem and not problem:
            log.warning("keys: %s is right again", self._path)
        self.problem = problem


def read_keys(text: str, file: str, env: Mapping[str, str] | None = None) -> KeyFileData:
    """What a key file's text holds. Raises PolicyError with each problem as file:line:col."""
    document = read_document(text, file, os.environ if env is None else env)
    data, found = document.data, {}
    for key in data.keys() - set(TOP):
        document.blame((key,), f"unknown key; {suggestion(key, TOP)}", key=True)
    if data.get("schema") != 1:
        document.blame(("schema",), "expected 1")
    secret = data.get("secret")
    if not isinstance(secret, str) or not HEX.fullmatch(secret):
        document.blame(("secret",), "expected 64 hex digits, such as `openssl rand -hex 32` makes")
    for at, entry in enumerate(_listed(document)):
        record = _record(document, at, entry)
        if record and record.id in found:
            document.blame(("keys", at, "id"), "given twice")
        if record:
            found[record.id] = record
    if document.problems:
        raise PolicyError(document.problems)
    return KeyFileData(bytes.fromhex(str(secret)), found)


def _listed(document: Document) -> list[Any]:
    keys = document.data.get("keys")
    if isinstance(keys, list):
        return keys
    document.blame(("keys",), "expected a list; `keys: []` holds none")
    return []


def _record(document: Document, at: int, entry: object) -> KeyRecord | None:
    path = ("keys", at)
    if not isinstance(entry, dict):
        document.blame(path, "expected a mapping")
        return None
    for name in entry.keys() - set(FIELDS):
        document.blame((*path, name), f"unknown key; {suggestion(name, FIELDS)}", key=True)
    try:
        record = msgspec.convert({"plan": None, **entry}, KeyRecord)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = re.split(r"\W", where)[0]
        document.blame((*path, name) if name else path, what)
        return None
    for name, told in _wrong(record):
        document.blame((*path, name), told)
    return record


def _wrong(record: KeyRecord) -> Iterator[tuple[str, str]]:
    """Each field whose value cannot be, and what is expected there."""
    for name, told in (("hash", record.hash), ("old_hash", record.old_hash)):
        if told is not None and not HEX.fullmatch(told):
            yield name, "expected 64 hex digits"
    for name in POSITIVE:
        value = getattr(record, name)
        if value is not None and value <= 0:
            yield name, "expected more than 0"
    if told := window_problem(record.window):
        yield "window", told
