"""One writer for a folder: a lock of the operating system, released when its process ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hydrabench.errors import LedgerError
from hydrabench.files import SCRATCH, now, write_json

LOCK, HOLDER = ".writer.lock", ".writer.json"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` inside the block; the folder is created if needed.

    What killed writers left half written is removed. Afterwards nothing of the lock is left, nor a folder that it
    made and in which nothing was written.
    Raises: LedgerError naming the process that writes there; OSError if the folder cannot be written.
    """
    made = not folder.exists()
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LedgerError(
            f"{folder} is being written by {_holder(folder)}; wait until it has finished, or choose a new --out"
        ) from error
    try:
        for scratch in folder.glob(f".*{SCRATCH}"):
            scratch.unlink(missing_ok=True)
        write_json(folder / HOLDER, {"host": socket.gethostname(), "pid": os.getpid(), "started": now()})
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)  # by its holder: who waits for it notices, and makes a new one
            if made and not any(folder.iterdir()):
                folder.rmdir()
        lock.release()


def interrupted(folder: Path) -> bool:
    """Whether a writer of `folder` was killed, and none was there since; or one is at work."""
    return (folder / HOLDER).is_file()


def _holder(folder: Path) -> str:
    """Return a description of the process that holds the lock."""
    try:
        about = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {about['pid']} on {about['host']}, started {about['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has not yet said which
