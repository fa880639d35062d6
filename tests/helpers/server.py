"""A server on this machine with every fault that servers have, and what it sends."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile

from hydrabench.checkpoints.transfer import RECEIVED_BYTES

# More than three blocks, no two alike, so that bytes put in the wrong place are noticed.
BODY = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(3 * RECEIVED_BYTES // 32 + 100))
PAGE = b"\n<!DOCTYPE html><html><head><title>Link\n not found &amp; gone</title></head>" + b" " * 300
OTHER = BODY[::-1]


def sha(body):
    return hashlib.sha256(body).hexdigest()


class Site:
    """A server on this machine. `routes` maps a path to a function of the request; `requests` has what was asked."""

    def __init__(self):
        self.routes, self.requests, self.closing = {}, [], threading.Event()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append((self.path, dict(self.headers)))
                site.routes[self.path](self)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def put(self, path, *answers):
        """Give these answers to the requests for `path`, the last one for good; return its URL."""
        left = list(answers)

        def answer_next(request):
            reply = left.pop(0) if len(left) > 1 else left[0]
            reply(request)

        self.routes[path] = answer_next
        return self.url(path)

    def asked(self, path):
        return [headers for where, headers in self.requests if where == path]

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def answer(body=BODY, *, status=200, cut=None, length=True, kind="application/octet-stream", **headers):
    """Answer with `body`, of which only the first `cut` bytes are sent before the connection is closed."""

    def send(request):
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if length:
            request.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body[:cut])

    return send


def ranges(body=BODY, *, etag='"v1"', cut=None):
    """Answer as a server that knows ranges does (RFC 9110): the rest if the version is still the same, else all."""

    def send(request):
        asked = request.headers.get("Range")
        if not asked or request.headers.get("If-Range") != etag:
            return answer(body, cut=cut, ETag=etag)(request)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        where = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return answer(body[start:], status=206, cut=cut, ETag=etag, Content_Range=where)(request)

    return send


def move(target, status=302):
    return answer(b"", status=status, Location=target)


def stall(site):
    """Send a little, then nothing until the test is over."""

    def send(request):
        answer(cut=100)(request)
        site.closing.wait(5)

    return send


def zipped(members, date=(2020, 1, 1, 0, 0, 0), mode=0o644):
    """The bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()
