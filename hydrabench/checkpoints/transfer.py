"""One HTTP request for a file: which addresses are allowed, time limits, and responses that are not the file.

Only https addresses are allowed, unless the hash of the file is known; that holds for every redirect. A body may take
only so long, must come at `SLOWEST` bytes a second, and may not be longer than the caller allows.
"""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from hydrabench.checkpoints.header import shown

Answer = TypeVar("Answer")
RECEIVED_BYTES = 1 << 16
SLOWEST = 1000  # bytes a second, on average over the time-out
REDIRECTS = 10
HERE = ("127.0.0.1", "localhost", "::1")


class Refused(Exception):
    """An address does not give the file; the next one is tried."""


class Broken(Refused):
    """The connection broke on the way; the same address is tried again."""


class Unsatisfiable(Broken):
    """The server has no bytes where the partial file ends."""


class _Session(requests.Session):  # type: ignore[misc]
    """Follows redirects to secure addresses only."""

    def __init__(self, *, hash_known: bool) -> None:
        super().__init__()
        self.hash_known, self.max_redirects = hash_known, REDIRECTS
        self.headers.update({"User-Agent": "hydrabench", "Accept-Encoding": "identity"})

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect. Raises: Refused if that address is not allowed."""
        target: str | None = super().get_redirect_target(resp)
        if target:
            require_secure(urljoin(resp.url, target), hash_known=self.hash_known, redirected=True)
        return target


def require_secure(address: str, *, hash_known: bool, redirected: bool = False) -> None:
    """Raise for addresses that are not https, or not on the web."""
    parts = urlsplit(address)
    where = f"redirects to {shown(address)}, which" if redirected else "it"
    if parts.scheme not in ("http", "https"):
        raise Refused(f"{where} is not http or https")
    if parts.scheme == "http" and not hash_known and parts.hostname not in HERE:
        raise Refused(f"{where} is not https, and nobody has published a hash of the file to check it by")


def open_address(address: str, headers: dict[str, str], *, timeout: float, hash_known: bool) -> requests.Response:
    """Send the request and return the response, whose body is still to be read.

    Args:
        timeout: seconds to wait for the connection and for each piece; the head of the answer may take three times it.
        hash_known: whether the file can be checked, so that it may come unencrypted.
    Raises: Refused or Broken.
    """
    require_secure(address, hash_known=hash_known)
    session = _Session(hash_known=hash_known)
    try:
        response = _within(3 * timeout, lambda: session.get(address, headers=headers, stream=True, timeout=timeout))
    except requests.TooManyRedirects as error:
        raise Refused(f"redirects more than {REDIRECTS} times") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise Refused(_problem(error, timeout)) from error
    if response.status_code == 416:
        raise Unsatisfiable("the server answered 416 to a request for the rest")
    if response.status_code >= 400:
        response.close()
        raise Refused(f"the server answered {response.status_code} {shown(response.reason or '')}".rstrip())
    return response


def blocks(response: requests.Response, *, most: int, timeout: float, deadline: float) -> Iterator[bytes]:
    """Yield the body of an answer piece by piece, as it comes; it ends early where the connection closes.

    Args:
        most: bytes that it may have. timeout: seconds without a byte, and over which `SLOWEST` is measured.
        deadline: of `time.monotonic`.
    Raises: Broken if it stalls, Refused if it is too long or takes too long.
    """
    total = recent = 0
    since = time.monotonic()
    while True:
        try:
            block = response.raw.read1(RECEIVED_BYTES, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Broken(f"nothing came for {timeout:g} s") from error
        except urllib3.exceptions.ProtocolError:
            return  # closed before its end; whoever knows the length sees it
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Broken(_problem(error, timeout)) from error
        if not block:
            return
        total, recent, now = total + len(block), recent + len(block), time.monotonic()
        if total > most:
            raise Refused(f"sends more than {most} bytes")
        if now > deadline:
            raise Refused(f"took too long: {total} bytes came in the time that is allowed")
        if now - since >= timeout:
            if recent < SLOWEST * (now - since):
                raise Broken(f"only {recent} bytes came in {now - since:.1f} s")
            recent, since = 0, now
        yield block


def refuse_web_page(response: requests.Response, beginning: bytes) -> None:
    """Quota notices, log-in forms and "link not found" come as HTML with status 200."""
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml") and not start.startswith((b"<!doctype html", b"<html")):
        return
    title = re.search(rb"<title[^>]*>(.*?)</title>", beginning, re.IGNORECASE | re.DOTALL)
    words = shown(html.unescape(title[1].decode("utf-8", "replace"))) if title else ""
    raise Refused(
        f"gave a web page{f' ({words!r})' if words else ''} in place of weights; "
        "the link may have expired or need a log-in"
    )


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """Return what `ask` does. Raises: Broken after so many seconds, in which it may still have received bytes."""
    done: dict[str, Any] = {}

    def run() -> None:
        try:
            done["answer"] = ask()
        except BaseException as error:  # raised again by the thread that waits
            done["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in done:
        raise done["error"]
    if "answer" not in done:
        raise Broken(f"no answer came in {seconds:g} s")
    answer: Answer = done["answer"]
    return answer


def _problem(error: BaseException, timeout: float) -> str:
    """Return what happened, in the words of the system, which the libraries wrap several times."""
    if isinstance(error, requests.Timeout | TimeoutError):
        return f"nothing came for {timeout:g} s"
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"the connection failed ({shown(str(error)) or type(error).__name__})"
