"""A store of runs: one record per configuration and code, shared by any number of processes.

    DIR/runs/KEY/result.json     the record, written in one step; KEY names configuration and code
    DIR/references/KEY.json      dense sides, each made once
    DIR/locks/KEY                held (``flock``) while a run is made; the kernel lets go when its process dies
    DIR/journal/SWEEP.jsonl      what became of every job of one sweep, a line each

A record is the truth; everything else can be deleted. Locks and appended lines work on local disks and on network file
systems with POSIX locks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.code import code_version
from tokcomp.experiment.config import RunConfig, config_hash
from tokcomp.experiment.reference import Reference, reference_hash
from tokcomp.experiment.result import SCHEMA_VERSION, Result, write_atomically

__all__ = ["Store", "key_of"]

RECORD = "result.json"


def key_of(config: RunConfig) -> str:
    """Names a run in a store: digest of the validated configuration and of the code, 16 hexadecimal characters."""
    return hashlib.sha256(f"{config_hash(config)}:{code_version(config)}".encode()).hexdigest()[:16]


class Store:
    """One folder of runs.

    Args:
        root: the folder; made where it is not there.

    Raises:
        ConfigurationError: it cannot be made or written, or a newer tokcomp wrote it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._claim_folder()

    @classmethod
    def existing(cls, root: Path) -> Store:
        """The store at ``root``, for reading.

        Raises:
            ConfigurationError: there is none.
        """
        if not root.is_dir():
            raise ConfigurationError(f"{root} is no folder: give the folder of a sweep (hydra.sweep.dir)")
        if not (root / "store.json").is_file():
            raise ConfigurationError(f"{root} holds no store (no store.json): give the folder of a sweep")
        store = cls.__new__(cls)
        store.root = root
        store._refuse_newer()
        return store

    def _claim_folder(self) -> None:
        mark = self.root / "store.json"
        if mark.is_file():
            self._refuse_newer()
            if not os.access(self.root, os.W_OK):
                raise ConfigurationError(f"{self.root} cannot be written: give another hydra.sweep.dir")
            return
        write_atomically(mark, json.dumps({"schema_version": SCHEMA_VERSION}) + "\n")

    def _refuse_newer(self) -> None:
        mark = self.root / "store.json"
        try:
            version = int(json.loads(mark.read_text(encoding="utf-8"))["schema_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{mark} is damaged: delete it, the records beside it are kept") from error
        if version > SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self.root} was written by a newer tokcomp (schema {version}, this one reads {SCHEMA_VERSION}): "
                "upgrade tokcomp, or give another folder"
            )

    # -- records -----------------------------------------------------------------------------------------------------

    def folder(self, key: str) -> Path:
        """Where the record of a run lies."""
        return self.root / "runs" / key

    def records(self) -> Iterator[Path]:
        """All record files, sorted by key."""
        yield from sorted((self.root / "runs").glob(f"*/{RECORD}"))

    def good(self, key: str, say: Callable[[str], None] = lambda line: None) -> Result | None:
        """The record of a run that ended well, or None.

        A damaged record is moved aside (``result.json.damaged``) and said; the run is made again.

        Raises:
            ConfigurationError: a newer tokcomp wrote the record.
        """
        path = self.folder(key) / RECORD
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        try:
            result = Result.model_validate_json(content)
        except ValidationError:
            self._refuse_newer_record(path, content)
            aside = path.with_name(f"{RECORD}.damaged")
            try:
                path.replace(aside)
            except FileNotFoundError:  # another process has just moved it
                return None
            say(f"{path} is damaged: moved to {aside.name}, the run is made again")
            return None
        return result if result.status == "ok" else None

    def _refuse_newer_record(self, path: Path, content: bytes) -> None:
        try:
            version = json.loads(content).get("schema_version", 0)
        except (ValueError, AttributeError):
            return
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigurationError(
                f"{path} was written by a newer tokcomp (schema {version}, this one reads {SCHEMA_VERSION}): upgrade "
                "tokcomp, or give another hydra.sweep.dir"
            )

    def reference(self, config: RunConfig, make: Callable[[], Reference]) -> Reference:
        """The dense side of a run: an earlier one's, or ``make``'s, which is then kept. Others wait while it is made."""
        name = hashlib.sha256(f"{reference_hash(config)}:{code_version(config)}".encode()).hexdigest()[:16]
        path = self.root / "references" / f"{name}.json"
        known = Reference.read(path)
        if known is not None:
            return known
        with self.claim(f"reference-{name}", wait=True):
            known = Reference.read(path)
            if known is None:
                known = make()
                known.write(path)
        return known

    # -- who makes what ----------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, key: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether the run is ours to make now; False: another process makes it (with ``wait``: wait for that one)."""
        path = self.root / "locks" / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)  # lets go of the lock, too

    # -- what became of the jobs of a sweep --------------------------------------------------------------------------

    def note(self, sweep: str, **line: Any) -> None:
        """Append one line to a sweep's journal; lines of several processes never mix."""
        path = self.root / "journal" / f"{sweep}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                fcntl.flock(
                    handle, fcntl.LOCK_EX
                )  # on NFS, appending alone may write over what another machine appends
                left = memoryview((json.dumps(line) + "\n").encode())
                while left:
                    left = left[os.write(handle, left) :]
            finally:
                os.close(handle)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error

    def journal(self, sweep: str) -> list[dict[str, Any]]:
        """The lines so far; a last line that is still being written is left out."""
        path = self.root / "journal" / f"{sweep}.jsonl"
        if not path.is_file():
            return []
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines]
