"""Checkpoints from the web: fetched once, kept in the user's cache, their hashes in the user's lock file.

In the cache (see `hydrabench.files.cache_folder`), `zoo/ID/` holds the files of a checkpoint, and `zoo.lock.json` says
what every file was when it was first fetched: a checkpoint whose hash nobody published is trusted on first use, once it
has loaded as a network of the manifest's architecture, and may not change after that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from hydrabench.checkpoints.archive import unpack_weights, weights_suffix
from hydrabench.checkpoints.download import TIMEOUT, Expected, Progress, download
from hydrabench.checkpoints.manifest import Sha256, ZooEntry, ZooId
from hydrabench.config.fields import Section
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.files import CACHE_VARIABLE, cache_folder, sha256_of, write_text

try:
    import fcntl
except ImportError:  # not on Windows: there, two processes that fetch the same checkpoint at once are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = "zoo.lock.json"
# Names without their endings; the first that is there is what an id stands for.
ORDER = ("checkpoint_dense", "checkpoint")
FileName = Annotated[str, Field(pattern=rf"^({'|'.join(ORDER)})\.[a-z.]+$")]


class LockedFile(Section):
    """One file as it was when it was first fetched."""

    sha256: Sha256
    bytes: PositiveInt


class Lock(Section):
    """The lock file: id -> file name -> what it was."""

    schema_version: Literal["hydrabench.zoo-lock/1"] = "hydrabench.zoo-lock/1"
    checkpoints: dict[ZooId, dict[FileName, LockedFile]] = Field(default_factory=dict)


def cached_files(entry: ZooEntry, *, check: bool = True) -> list[Path]:
    """The files of a checkpoint that are in the cache and whole, the one it stands for first; empty if any is not.

    check: compare their bytes with the lock file, and with the manifest; otherwise see only whether they exist.
    Raises: CheckpointError if the lock file is damaged.
    """
    folder, known = _folder(entry), _expected(entry)
    files = sorted((folder / name for name in known), key=lambda path: _rank(path.name))
    if not all(path.is_file() for path in files):
        return []
    if check and any(sha256_of(path) != known[path.name].sha256 for path in files):
        return []
    return files


def fetch_remote(
    entry: ZooEntry, *, offline: bool = False, timeout: float = TIMEOUT, progress: Progress | None = None
) -> list[Path]:
    """Return the files of a checkpoint on the web, the one it stands for first; fetch them if they are not cached.

    Args:
        entry: an entry with a `url`.
        offline: use the cache only.
        timeout, progress: as for `hydrabench.checkpoints.download.download`.
    Raises: CheckpointError if no address gives the checkpoint, its bytes are not the expected ones, or the
        cache cannot be used.
    """
    if found := cached_files(entry):
        return found
    if offline:
        raise CheckpointError(
            f"zoo checkpoint {entry.id} is not in the cache {_folder(entry)}, or damaged there; "
            "fetch it without --offline"
        )
    try:
        with _alone(_folder(entry) / ".lock"):
            return cached_files(entry) or _fetch(entry, timeout=timeout, progress=progress)
    except OSError as error:
        raise CheckpointError(
            f"cannot keep zoo checkpoint {entry.id} in the cache {cache_folder()} ({error}); "
            f"set {CACHE_VARIABLE} to a folder with room that you may write to"
        ) from error


def _fetch(entry: ZooEntry, *, timeout: float, progress: Progress | None) -> list[Path]:
    folder, known = _folder(entry), _expected(entry)
    name = f"checkpoint{weights_suffix(str(entry.url).split('?')[0]) or '.pth'}"
    try:
        if entry.archive is None:
            expected = known.get(name, Expected(entry.sha256, entry.bytes))
            download(entry.addresses, folder / name, expected=expected, timeout=timeout, progress=progress)
            files = [folder / name]
        else:
            download(entry.addresses, folder / "archive.zip", timeout=timeout, progress=progress)
            files = _unpack(entry, folder, known)
        _require_network(entry, files)
    except CheckpointError as error:
        raise CheckpointError(
            f"zoo checkpoint {entry.id} could not be fetched: {error}. Try again later, "
            f"or get it with a browser from {entry.url} and give the path of the file"
        ) from error
    _record(entry.id, {path.name: LockedFile(sha256=sha256_of(path), bytes=path.stat().st_size) for path in files})
    return cached_files(entry, check=False)


def _require_network(entry: ZooEntry, files: Sequence[Path]) -> None:
    """Delete downloaded files that are not the network of the manifest, before their hash is recorded.

    Raises: CheckpointError with what is wrong with it.
    """
    from hydrabench.checkpoints.opening import read_entry  # noqa: PLC0415 - only a download needs torch

    try:
        for path in files:
            read_entry(entry, path)
    except (CheckpointError, ConfigError) as error:
        for path in files:
            path.unlink()
        raise CheckpointError(f"what came is no {entry.arch} for {entry.dataset}: {error}") from error


def _unpack(entry: ZooEntry, folder: Path, known: dict[str, Expected]) -> list[Path]:
    """Take the checkpoints out of the archive, compare them with what is known, and only then put them in place.

    The archive's own hash says nothing: a server that packs a shared folder on demand gives another one each time.
    """
    archive = folder / "archive.zip"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            found = {path.name: path for path in unpack_weights(archive, Path(scratch)).values()}
            main = min(found, key=_rank)
            if entry.sha256 is not None:
                known = {**known, main: Expected(entry.sha256)}
            for name, expected in known.items():
                _compare(name, found.get(name), expected)
            return [path.replace(folder / name) for name, path in found.items()]
    finally:
        archive.unlink(missing_ok=True)


def _compare(name: str, path: Path | None, expected: Expected) -> None:
    """Raises: CheckpointError if a file of the archive is missing or not the expected one."""
    if path is None:
        raise CheckpointError(f"the zip file gives no {name}, unlike {expected.origin}")
    found = sha256_of(path)
    if found != expected.sha256:
        raise CheckpointError(
            f"gave a {name} with SHA-256 {found}; right is SHA-256 {expected.sha256}, says {expected.origin}"
        )


def _expected(entry: ZooEntry) -> dict[str, Expected]:
    """Return what is known of a checkpoint's files by name, from the lock file; the manifest overrides it."""
    path = cache_folder() / LOCK
    origin = f"the first fetch, recorded in {path} (to trust the new file, remove {entry.id} there)"
    files = _read_lock(path).checkpoints.get(entry.id, {})
    known = {name: Expected(file.sha256, file.bytes, origin) for name, file in files.items()}
    if known and entry.sha256 is not None:
        main = min(known, key=_rank)
        known[main] = Expected(entry.sha256, entry.bytes)
    return known


def _record(identity: str, files: dict[str, LockedFile]) -> None:
    """Add a checkpoint to the lock file; other processes may be adding theirs."""
    path = cache_folder() / LOCK
    with _alone(path.with_name(f".{LOCK}.lock")):
        lock = _read_lock(path)
        lock = lock.model_copy(update={"checkpoints": {**lock.checkpoints, identity: files}})
        write_text(path, lock.model_dump_json(indent=2) + "\n")


def _read_lock(path: Path) -> Lock:
    try:
        return Lock.model_validate_json(path.read_bytes()) if path.exists() else Lock()
    except (ValidationError, OSError) as error:
        raise CheckpointError(
            f"the lock file {path} is damaged; put it right, or remove it to trust the next fetch of every checkpoint"
        ) from error


def _rank(name: str) -> int:
    return ORDER.index(name.partition(".")[0])


def _folder(entry: ZooEntry) -> Path:
    return cache_folder() / "zoo" / entry.id


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock: the ranks of a distributed run open the same checkpoint at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl is not None:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
