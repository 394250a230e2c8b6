"""How does a command change a file of keys?   By the methods that a Store has for keys."""

import contextlib
import dataclasses
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.keyfile import read_keys
from gateway.policy import file_text
from gateway.store import KeyRecord


class KeyFileStore:
    """The methods that a Store has for keys, on a file that need not exist yet where it may be `new`. All raise
    PolicyError for an invalid file, OSError for one that cannot be written, and ValueError for a file in YAML, whose
    comments would be lost.

    A lock on the folder lets one process write at a time. The file is replaced whole, so that a reader sees the old one
    or the new one, with mode 0600; of a symbolic link the target is replaced.
    """

    def __init__(self, path: Path, new: bool = True) -> None:
        self._path, self._new = Path(os.path.realpath(path)), new

    async def secret(self) -> bytes:
        """The file's secret; the file is made if there is none."""
        with self._changing():
            pass
        return read_keys(file_text(self._path), str(self._path)).secret

    async def put_key(self, record: KeyRecord, only_first: bool = False) -> bool:
        with self._changing() as written:
            if only_first and written["keys"]:
                return False
            told = _entry({}, dataclasses.asdict(record))
            written["keys"] = [key for key in written["keys"] if key["id"] != record.id] + [told]
        return True

    async def list_keys(self) -> list[KeyRecord]:
        held = read_keys(file_text(self._path), str(self._path))
        return sorted(held.records.values(), key=lambda record: record.created)

    async def change_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord | None:
        with self._changing() as written:
            record = read_keys(msgspec.json.encode(written).decode(), str(self._path)).records.get(key_id)
            if record is None:
                return None
            before, after = dataclasses.asdict(record), dataclasses.asdict(changed := change(record))
            new = {name: value for name, value in after.items() if value != before[name]}
            written["keys"] = [_entry(key, new) if key["id"] == key_id else key for key in written["keys"]]
        return changed

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The file's data, variables not filled in; what the block makes of it is written back, if that is valid."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            before = None if self._new and not self._path.exists() else file_text(self._path)
            fresh = {"schema": 1, "secret": secrets.token_hex(32), "keys": []}
            written = fresh if before is None else self._decoded(before)
            yield written
            after = msgspec.json.format(msgspec.json.encode(written)).decode() + "\n"
            if after != before:
                read_keys(after, str(self._path))
                self._replace(after)
        finally:
            os.close(folder)

    def _decoded(self, text: str) -> dict[str, Any]:
        read_keys(text, str(self._path))
        try:
            found: dict[str, Any] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise ValueError(f"{self._path} is YAML, whose comments would be lost: only JSON is written") from None
        return found

    def _replace(self, text: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _entry(key: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A key of the file with what is new of it, of which no text is taken for a variable; None leaves a member out."""
    texts = {name: value.replace("${", "$${") for name, value in new.items() if isinstance(value, str)}
    return {name: value for name, value in {**key, **new, **texts}.items() if value is not None}
