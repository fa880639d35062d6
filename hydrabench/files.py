"""Atomic writes, hashes of files, and the standard folders."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydrabench.errors import ConfigError

CACHE_VARIABLE = "HYDRABENCH_CACHE"
SCRATCH = ".partial"  # how the names of scratch files end, which a killed process leaves behind
PENDING = ".pending.json"  # names of files that are written and about to take their places


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch file beside `path` to write to; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
        _flush_names(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_together(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write several files into a folder, texts as UTF-8: all of them, or none if one cannot be written.

    All are on the disk under other names before the first takes its place. If the process is killed while they take
    their places, `finish_together` does the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = {name: _scratch(folder, name) for name in contents}
    try:
        for name, content in contents.items():
            with scratch[name].open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())  # a full disk may say so only now
        write_json(folder / PENDING, sorted(contents))
        finish_together(folder)
    finally:
        for path in scratch.values():
            path.unlink(missing_ok=True)


def _scratch(folder: Path, name: str) -> Path:
    """Return where a file waits until all are written; one of a folder inside waits beside the others."""
    return folder / f".{name.replace('/', '+')}{SCRATCH}"


def finish_together(folder: Path) -> None:
    """Put the files of a `write_together` that was killed in their places, if it had written all of them."""
    pending = folder / PENDING
    if not pending.is_file():
        return
    for name in json.loads(pending.read_text(encoding="utf-8")):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{pending} names {name!r}, which lies outside of its folder; remove it")
        with suppress(FileNotFoundError):  # that one was in its place
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _scratch(folder, name).replace(folder / name)
    _flush_names(folder)
    pending.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON. Raises: ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def close_name(path: Path) -> str:
    """Return "; did you mean 'runs/pgd'?" for the file or folder beside `path` that is named most like it, or ""."""
    with suppress(OSError, ValueError):
        close = get_close_matches(path.name[:100], [one.name for one in path.parent.iterdir()], n=1)
        return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
    return ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shipped(folder: str) -> Path:
    """Return the folder "configs" or "zoo" that comes with hydrabench, in a checkout or installed from a wheel."""
    package = Path(__file__).resolve().parent
    beside, inside = package.parent / folder, package / folder
    return inside if inside.is_dir() else beside


def cache_folder() -> Path:
    """The folder of all that is kept for later: HYDRABENCH_CACHE, else $XDG_CACHE_HOME/hydrabench, else in ~/.cache.

    Raises: ConfigError if that lies in a home folder that this user does not have, as in many containers.
    """
    try:
        if given := os.environ.get(CACHE_VARIABLE):
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hydrabench"
    except RuntimeError as error:
        raise ConfigError(
            f"this user has no home folder to keep files in; set {CACHE_VARIABLE} to a folder for them"
        ) from error
