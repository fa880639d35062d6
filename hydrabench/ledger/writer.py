"""One writer for a folder: a lock of the operating system, released when its process ends."""

from __future__ import annotations

import glob
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hydrabench.errors import LedgerError
from hydrabench.files import SCRATCH, finish_together, now, write_json

LOCK, HOLDER = ".writer.lock", ".writer.json"
SAYING = 1.0  # second, in which a process that got the lock has said who it is


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside the block; the folder is created if needed.

    What killed writers left half written is removed, and what they had written and not yet put in its place is put
    there. Afterwards nothing of the lock is left, nor a folder that it made and in which nothing was written.
    Raises: LedgerError naming the process that writes there; OSError if the folder cannot be written.
    """
    made = not folder.exists()
    try:
        with _held(folder, LOCK, HOLDER, folder):
            finish_together(folder)
            _remove(folder, f".*{SCRATCH}")
            yield
    finally:
        with suppress(OSError):
            if made and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def writing_file(path: Path) -> Iterator[None]:
    """Hold a lock on the name of one file inside the block, and remove what killed writers of it left half written.

    Raises: LedgerError naming the process that writes it; OSError if its folder cannot be written.
    """
    with _held(path.parent, f".{path.name}.lock", f".{path.name}.json", path):
        _remove(path.parent, f".{glob.escape(path.name)}.*{SCRATCH}")
        yield


@contextmanager
def _held(folder: Path, lock_name: str, holder: str, what: Path) -> Iterator[None]:
    lock = FileLock(folder / lock_name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LedgerError(
            f"{what} is being written by {_holder(folder / holder)}; wait until it has finished, or choose a new --out"
        ) from error
    try:
        write_json(folder / holder, {"host": socket.gethostname(), "pid": os.getpid(), "started": now()})
        yield
    finally:
        with suppress(OSError):
            (folder / holder).unlink(missing_ok=True)
            (folder / lock_name).unlink(missing_ok=True)  # by its holder: who waits for it notices, and makes a new one
        lock.release()


def _remove(folder: Path, pattern: str) -> None:
    for scratch in folder.glob(pattern):
        scratch.unlink(missing_ok=True)


def interrupted(folder: Path) -> bool:
    """Return whether a writer of `folder` was killed, and none was there since; or one is at work."""
    return (folder / HOLDER).is_file()


def _holder(file: Path) -> str:
    """Return a description of the process that holds the lock, which says who it is right after it has it."""
    end = time.monotonic() + SAYING
    while True:
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            return f"process {about['pid']} on {about['host']}, started {about['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > end:
                return "another process"
            time.sleep(SAYING / 50)
