"""Downloading one file over HTTP: whole or not at all, resumed where that is safe, and never a web page.

A partial download lies beside its target as `NAME.part`, with `NAME.part.json` saying where it came from. It is gone
on with only if the server named the file's version by a strong ETag, and only while that ETag holds (RFC 9110, sections
13.1.5 and 14.2): otherwise the bytes of two versions could be mixed.
"""

from __future__ import annotations

import html
import http.client
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from hydrabench.errors import CheckpointError
from hydrabench.files import sha256_of, write_json

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # per address, when the connection breaks on the way
BLOCK = 1 << 16
Progress = Callable[[int, int | None], None]  # bytes there so far, bytes in all or None if the server does not say


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is fetched, and who says so."""

    sha256: str | None = None
    bytes: int | None = None
    origin: str = "the manifest"


UNKNOWN = Expected()


class _Refused(Exception):
    """An address does not give the file; the next one is tried."""


class _Broken(_Refused):
    """The connection broke on the way; the same address is tried again."""


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
        addresses: http or https URLs, tried in this order; redirects are followed.
        target: takes the file once it is whole and as expected; its folder must exist.
        expected: its hash and size as far as they are known; other bytes are refused.
        timeout: seconds to wait for the connection and for each next piece, > 0.
        progress: told how far the download has come, after every piece.
    Raises: CheckpointError with what was wrong with every address. What a broken connection left is kept if the
        next call can go on from there.
    """
    problems = []
    for address in addresses:
        try:
            return _fetch(address, target, expected=expected, timeout=timeout, progress=progress)
        except _Refused as problem:
            problems.append(f"{address}: {problem}")
    _Partial(target).drop_unless_resumable()
    raise CheckpointError("; ".join(problems))


def _fetch(address: str, target: Path, *, expected: Expected, timeout: float, progress: Progress | None) -> str:
    partial = _Partial(target)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(address, partial, expected=expected, timeout=timeout, progress=progress or _ignore)
            break
        except _Broken as problem:
            if attempt == ATTEMPTS:
                raise _Broken(f"{problem}, at {ATTEMPTS} attempts") from problem
    found, size = sha256_of(partial.path), partial.path.stat().st_size
    if expected.sha256 not in (None, found) or expected.bytes not in (None, size):
        partial.drop()
        right = [f"{expected.bytes} bytes"] if expected.bytes else []
        right += [f"SHA-256 {expected.sha256}"] if expected.sha256 else []
        raise _Refused(f"gave {size} bytes, SHA-256 {found}; right is {', '.join(right)}, says {expected.origin}")
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
        """Forget a beginning that no later call could go on with."""
        if not self.about.exists():
            self.drop()

    def drop(self) -> None:
        """Forget it."""
        self.about.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _receive(address: str, partial: _Partial, *, expected: Expected, timeout: float, progress: Progress) -> None:
    """Bring the partial file to its end. Raises: _Refused or _Broken."""
    etag = partial.version(address)
    start = partial.path.stat().st_size if etag else 0
    headers = {"Range": f"bytes={start}-", "If-Range": etag} if etag else {}
    try:
        response = _open(address, headers, timeout)
    except _Unsatisfiable as problem:
        partial.drop()
        raise _Broken(str(problem)) from problem
    with response:
        resumes = start > 0 and _goes_on(response, start, etag)
        if not resumes and response.status != 200:
            partial.drop()
            raise _Broken(f"the server answered {response.status} {response.reason} to a request for the whole file")
        total = _content_range(response)[1] if resumes else _length(response)
        block = _read(response, timeout)
        _refuse_web_page(response, b"" if resumes else block)
        if total and expected.bytes not in (None, total):
            raise _Refused(f"offers {total} bytes; right is {expected.bytes} bytes, says {expected.origin}")
        if not resumes:
            partial.begin(address, response.headers.get("ETag"))
        done = start if resumes else 0
        with partial.path.open("ab") as file:
            while block:
                file.write(block)
                done += len(block)
                progress(done, total)
                block = _read(response, timeout)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Broken(f"the connection closed after {done} of {total} bytes")
    if done == 0:
        raise _Refused("gave an empty file")


class _Unsatisfiable(Exception):
    """The server has no bytes where the partial file ends."""


class _Redirects(request.HTTPRedirectHandler):
    """Follows redirects, but neither to another kind of address nor from https back to http."""

    def redirect_request(self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the next request."""
        allowed = {"https"} if urlsplit(req.full_url).scheme == "https" else {"http", "https"}
        if urlsplit(newurl).scheme not in allowed:
            raise _Refused(f"redirects to {newurl}, which is not {' or '.join(sorted(allowed))}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(address: str, headers: dict[str, str], timeout: float) -> HTTPResponse:
    """Ask for a file. Only http and https have a handler: no file:, ftp: or data: address is ever opened."""
    opener = request.OpenerDirector()
    for handler in (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, _Redirects,
                    request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler, request.UnknownHandler):  # fmt: skip
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "hydrabench"), ("Accept-Encoding", "identity")]
    try:
        response: HTTPResponse = opener.open(request.Request(address, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Unsatisfiable("the server answered 416 to a request for the rest") from error
        raise _Refused(f"the server answered {error.code} {' '.join(str(error.reason).split())}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(_network_problem(error, timeout)) from error
    return response


def _read(response: HTTPResponse, timeout: float) -> bytes:
    """The next piece of a body; empty at its end."""
    try:
        return response.read(BLOCK)
    except http.client.IncompleteRead as error:
        raise _Broken("the connection closed in the middle of the file") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_network_problem(error, timeout)) from error


def _network_problem(error: Exception, timeout: float) -> str:
    """What happened, in words."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"nothing came for {timeout:g} s"
    return f"the connection failed ({cause or type(error).__name__})"


def _length(response: HTTPResponse) -> int | None:
    """The size of the whole file, from Content-Length; None if the server does not say."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _goes_on(response: HTTPResponse, start: int, etag: str | None) -> bool:
    """Whether an answer is the rest of the same version of the file."""
    same = response.headers.get("ETag", etag) == etag
    return response.status == 206 and _content_range(response)[0] == start and same


def _content_range(response: HTTPResponse) -> tuple[int | None, int | None]:
    """Where a partial answer starts and how long the whole file is, from Content-Range ("bytes 5-9/10")."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _refuse_web_page(response: HTTPResponse, beginning: bytes) -> None:
    """Quota notices, log-in forms and "link not found" come as HTML with status 200."""
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    kind = response.headers.get_content_type()
    if kind not in ("text/html", "application/xhtml+xml") and not start.startswith((b"<!doctype html", b"<html")):
        return
    title = re.search(rb"<title[^>]*>(.*?)</title>", beginning, re.IGNORECASE | re.DOTALL)
    words = " ".join(html.unescape(title[1].decode("utf-8", "replace")).split())[:80] if title else ""
    raise _Refused(
        f"gave a web page{f' ({words!r})' if words else ''} in place of weights; "
        "the link may have expired or need a log-in"
    )


def _ignore(done: int, total: int | None) -> None:
    """Progress of a download that nobody watches."""
