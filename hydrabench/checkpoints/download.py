"""Downloading one file over HTTP: whole or not at all, resumed where that is safe, and never a web page.

A partial download lies beside its target as `NAME.part`, with `NAME.part.json` saying where it came from. It is gone
on with only if the server named the file's version by a strong ETag, and only while that ETag holds (RFC 9110, sections
13.1.5 and 14.2): otherwise the bytes of two versions could be mixed. No download is endless: its size is known or at
most `MOST_BYTES`, and its time is limited by its size.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError
from hydrabench.files import sha256_of, write_json

if TYPE_CHECKING:
    from requests import Response

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # per address, when the connection breaks on the way
# The largest released network with its scores and optimizer takes half a gigabyte; more is a mistake or an attack.
MOST_BYTES = 4 << 30
LEAST_RATE = 50_000  # bytes a second, of a whole download; it may take a minute more
Progress = Callable[[int, int | None], None]  # bytes there so far, bytes in all or None if the server does not say


@dataclass(frozen=True)
class Expected:
    """The expected hash and size of a file, and where they come from."""

    sha256: str | None = None
    bytes: int | None = None
    origin: str = "the manifest"

    @property
    def most(self) -> int:
        """Bytes that it may have."""
        return MOST_BYTES if self.bytes is None else self.bytes

    @property
    def seconds(self) -> float:
        """Return how long it may take."""
        return 60 + self.most / LEAST_RATE


UNKNOWN = Expected()


def download(
    addresses: Sequence[str],
    target: Path,
    *,
    expected: Expected = UNKNOWN,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> str:
    """Fetch a file from the first address that gives it, and return its SHA-256.

    Args:
        addresses: https URLs, tried in this order, or http ones if the hash is known; redirects are followed.
        target: takes the file once it is whole and as expected; its folder must exist.
        expected: its hash and size as far as they are known; other bytes are refused.
        timeout: seconds to wait for the connection and for each next piece, > 0.
        progress: told how far the download has come, after every piece.
    Raises: CheckpointError with what was wrong with every address. What a broken connection left is kept if the
        next call can go on from there.
    """
    from hydrabench.checkpoints.transfer import Refused  # noqa: PLC0415 - requests is slow to load, and rarely needed

    problems = []
    for address in addresses:
        try:
            return _fetch(address, target, expected=expected, timeout=timeout, progress=progress)
        except Refused as problem:
            problems.append(f"{address}: {problem}")
    _Partial(target).drop_unless_resumable()
    raise CheckpointError("; ".join(problems))


def _fetch(address: str, target: Path, *, expected: Expected, timeout: float, progress: Progress | None) -> str:
    from hydrabench.checkpoints.transfer import Broken, Refused  # noqa: PLC0415

    partial, deadline = _Partial(target), time.monotonic() + expected.seconds
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(address, partial, expected, timeout, deadline, progress or _ignore)
            break
        except Broken as problem:
            if attempt == ATTEMPTS:
                raise Broken(f"{problem}, at {ATTEMPTS} attempts") from problem
    found, size = sha256_of(partial.path), partial.path.stat().st_size
    if expected.sha256 not in (None, found) or expected.bytes not in (None, size):
        partial.drop()
        right = [f"{expected.bytes} bytes"] if expected.bytes else []
        right += [f"SHA-256 {expected.sha256}"] if expected.sha256 else []
        raise Refused(f"gave {size} bytes, SHA-256 {found}; right is {', '.join(right)}, says {expected.origin}")
    partial.path.replace(target)
    partial.drop()
    return found


class _Partial:
    """The beginning of a file, and where it came from."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.about = target.with_name(f"{target.name}.part.json")

    def version(self, address: str) -> str | None:
        """The ETag under which `address` gave this beginning; None if there is nothing to go on with."""
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            return str(about["etag"]) if about["address"] == address and self.path.stat().st_size else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, address: str, etag: str | None) -> None:
        """Start over with an empty file."""
        self.drop()
        self.path.touch()
        if etag and not etag.startswith("W/"):
            write_json(self.about, {"address": address, "etag": etag})

    def drop_unless_resumable(self) -> None:
        """Delete a partial file that no later call could resume."""
        if not self.about.exists():
            self.drop()

    def drop(self) -> None:
        """Forget it."""
        self.about.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def extend(self, first: bytes, rest: Iterator[bytes], progress: Callable[[int], None]) -> int:
        """Append pieces as they come, and return the size that it has then."""
        with self.path.open("ab") as file:
            done = file.tell()
            for block in itertools.chain([first] if first else [], rest):
                file.write(block)
                done += len(block)
                progress(done)
            file.flush()
            os.fsync(file.fileno())
        return done


def _receive(
    address: str, partial: _Partial, expected: Expected, timeout: float, deadline: float, progress: Progress
) -> None:
    """Bring the partial file to its end. Raises: Refused or Broken."""
    from hydrabench.checkpoints import transfer  # noqa: PLC0415

    etag = partial.version(address)
    start = partial.path.stat().st_size if etag else 0
    headers = {"Range": f"bytes={start}-", "If-Range": etag} if etag else {}
    try:
        response = transfer.open_address(address, headers, timeout=timeout, hash_known=expected.sha256 is not None)
    except transfer.Unsatisfiable:
        partial.drop()
        raise
    with response:
        resumes = start > 0 and _goes_on(response, start, etag)
        total = _total(response, partial, expected, resumes=resumes)
        done = start if resumes else 0
        pieces = transfer.blocks(response, most=expected.most - done, timeout=timeout, deadline=deadline)
        first = next(pieces, b"")
        transfer.refuse_web_page(response, b"" if resumes else first)
        if not resumes:
            partial.begin(address, response.headers.get("ETag"))
        try:
            done = partial.extend(first, pieces, lambda more: progress(more, total))
        except transfer.Broken:
            raise
        except transfer.Refused:
            partial.drop()
            raise
    if total is not None and done < total:
        raise transfer.Broken(f"the connection closed after {done} of {total} bytes")
    if done == 0:
        raise transfer.Refused("gave an empty file")


def _total(response: Response, partial: _Partial, expected: Expected, *, resumes: bool) -> int | None:
    """Return the size of the whole file as the server says it, None if it does not. Raises: Refused or Broken."""
    from hydrabench.checkpoints import transfer  # noqa: PLC0415

    if not resumes and response.status_code != 200:
        partial.drop()
        said = f"{response.status_code} {shown(response.reason or '')}"
        raise transfer.Broken(f"the server answered {said} to a request for the whole file")
    total = _content_range(response)[1] if resumes else _length(response)
    if total and (total > expected.most or expected.bytes not in (None, total)):
        right = f"right is {expected.bytes} bytes, says {expected.origin}" if expected.bytes else "that is too much"
        raise transfer.Refused(f"offers {total} bytes; {right}")
    return total


def _length(response: Response) -> int | None:
    """The size of the whole file, from Content-Length; None if the server does not say."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _goes_on(response: Response, start: int, etag: str | None) -> bool:
    """Return whether a response continues the same version of the file."""
    same = response.headers.get("ETag", etag) == etag
    return response.status_code == 206 and _content_range(response)[0] == start and same


def _content_range(response: Response) -> tuple[int | None, int | None]:
    """Return the start of a partial answer and the length of the whole file, from Content-Range ("bytes 5-9/10")."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _ignore(done: int, total: int | None) -> None:
    """Show no progress."""
