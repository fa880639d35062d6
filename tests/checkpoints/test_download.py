"""Downloads from a server of our own with every fault that servers have; zip files; the cache and its lock file."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import socket
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hydrabench.checkpoints import open_ref
from hydrabench.checkpoints.archive import unpack_weights
from hydrabench.checkpoints.cache import LOCK, cache_folder, cached_files, fetch_remote
from hydrabench.checkpoints.download import Expected, download
from hydrabench.checkpoints.manifest import ZooEntry
from hydrabench.checkpoints.transfer import RECEIVED_BYTES, Refused, require_secure
from hydrabench.errors import CheckpointError
from hydrabench.masking import attach_masks, bake_masks
from hydrabench.models import build_model

# More than three blocks, no two alike, so that bytes put in the wrong place are noticed.
BODY = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(3 * RECEIVED_BYTES // 32 + 100))
CUT = 2 * RECEIVED_BYTES + 1000
PAGE = b"\n<!DOCTYPE html><html><head><title>Link\n not found &amp; gone</title></head>" + b" " * 300


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


@pytest.fixture
def site(monkeypatch):
    """The server; connecting to any other machine is a failure of the test."""
    connect = socket.socket.connect

    def connect_here(self, address):
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Site()
    yield server
    server.close()


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


# The whole file -------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_nothing_else_is_left(site, tmp_path):
    seen = []
    found = download([site.put("/w", answer())], tmp_path / "w", progress=lambda *now: seen.append(now))
    assert (found, (tmp_path / "w").read_bytes()) == (sha(BODY), BODY)
    assert os.listdir(tmp_path) == ["w"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)
    assert len(seen) >= 4


def test_a_server_that_does_not_say_how_much_it_sends_is_believed_if_nothing_is_known(site, tmp_path):
    seen = []
    url = site.put("/w", answer(length=False))
    assert download([url], tmp_path / "w", progress=lambda *now: seen.append(now)) == sha(BODY)
    assert seen[-1] == (len(BODY), None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, tmp_path, status):
    url = site.put("/old", move("/new", status))
    site.put("/new", answer())
    expected = Expected(sha(BODY), len(BODY))
    assert download([url], tmp_path / "w", expected=expected) == sha(BODY)
    assert [path for path, _ in site.requests] == ["/old", "/new"]


# Faults: (answer, what is expected, what is said). Every one must also lead on to the mirror.
KNOWN = Expected(sha(BODY), len(BODY))
FAULTS = {
    "404": (lambda _: answer(b"no", status=404), Expected(), r"the server answered 404 Not Found"),
    "500": (lambda _: answer(b"no", status=500), Expected(), r"the server answered 500 Internal Server Error"),
    "truncated": (lambda _: answer(cut=CUT), Expected(), rf"closed after {CUT} of {len(BODY)} bytes, at 3 attempts"),
    "truncated, size known": (lambda _: answer(BODY[:CUT], length=False), Expected(None, len(BODY)),
                              rf"gave {CUT} bytes, SHA-256 {sha(BODY[:CUT])}; right is {len(BODY)} bytes, says the m"),
    "wrong bytes": (lambda _: answer(BODY[::-1]), KNOWN,
                    rf"SHA-256 {sha(BODY[::-1])}; right is {len(BODY)} bytes, SHA-256 {sha(BODY)}, says the manifest"),
    "wrong size": (lambda _: answer(BODY[:CUT]), KNOWN, rf"offers {CUT} bytes; right is {len(BODY)} bytes, says the m"),
    "web page": (lambda _: answer(PAGE, kind="text/html; charset=utf-8"), Expected(),
                 r"gave a web page \('Link not found & gone'\) in place of weights; the link may have expired"),
    "web page, called data": (lambda _: answer(PAGE), Expected(), r"gave a web page \('Link not found & gone'\)"),
    "web page, by its type": (lambda _: answer(b"quota exceeded", kind="text/html"), Expected(), r"gave a web page in"),
    "web page, no title": (lambda _: answer(b"<HTML>quota</HTML>"), Expected(), r"gave a web page in place of weights"),
    "empty": (lambda _: answer(b""), Expected(), r"gave an empty file"),
    "slow": (stall, Expected(), r"nothing came for 0\.1 s, at 3 attempts"),
    "to a local file": (lambda _: move("file:///etc/hostname"), Expected(),
                        r"redirects to file:///etc/hostname, which is not http"),
    "to ftp": (lambda _: move("ftp://127.0.0.1/w"), Expected(), r"redirects to ftp://127\.0\.0\.1/w, which is not"),
    "to itself": (lambda _: move("/w"), Expected(), r"redirects more than 10 times"),
    "unasked part": (lambda _: answer(status=206, Content_Range="bytes 5-9/10"), Expected(), r"answered 206 Partial"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_leaves_no_file(site, tmp_path, fault):
    reply, expected, message = FAULTS[fault]
    url = site.put("/w", reply(site))
    with pytest.raises(CheckpointError, match=message) as problem:
        download([url], tmp_path / "w", expected=expected, timeout=0.1)
    assert str(problem.value).startswith(f"{url}: ")
    assert "\n" not in str(problem.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_leads_on_to_the_mirror(site, tmp_path, fault):
    reply, expected, _ = FAULTS[fault]
    urls = [site.put("/w", reply(site)), site.put("/mirror", answer())]
    assert download(urls, tmp_path / "w", expected=expected, timeout=0.1) == sha(BODY)
    assert (tmp_path / "w").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["w"]


def test_mirrors_are_tried_in_order_and_all_problems_are_told(site, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/w"
    urls = [site.put("/1", answer(b"", status=403)), closed, site.put("/2", answer(b"", status=410))]
    expected = r"^\S+/1: the server answered 403 \w+; \S+/w: the connection failed \(.*refused.*\); \S+/2: .* 410 Gone$"
    with pytest.raises(CheckpointError, match=expected):
        download(urls, tmp_path / "w")
    site.put("/1", answer())
    site.requests.clear()
    download(urls, tmp_path / "w")
    assert [path for path, _ in site.requests] == ["/1"]


@pytest.mark.parametrize("redirected", [True, False])
def test_an_address_is_encrypted_unless_the_hash_is_known(redirected):
    with pytest.raises(Refused, match=r"not https, and nobody has published a hash of the file"):
        require_secure("http://example.org/w", hash_known=False, redirected=redirected)
    require_secure("http://example.org/w", hash_known=True, redirected=redirected)
    require_secure("https://example.org/w", hash_known=False, redirected=redirected)
    with pytest.raises(Refused, match=r"is not http or https"):
        require_secure("ftp://example.org/w", hash_known=True, redirected=redirected)


def test_a_redirect_to_an_unencrypted_address_is_not_followed(site, tmp_path):
    url = site.put("/w", move("http://192.0.2.1/w"))
    with pytest.raises(CheckpointError, match=r"redirects to http://192\.0\.2\.1/w, which is not https, and nobody"):
        download([url], tmp_path / "w")
    assert os.listdir(tmp_path) == []


# Hostile servers ------------------------------------------------------------------------------


def endless(request):
    """Send for ever, without saying how much."""
    answer(b"", length=False)(request)
    try:
        while True:
            request.wfile.write(bytes(RECEIVED_BYTES))
    except OSError:
        pass


def dribble(site, *, of_head=False):
    """Send a byte of the body, or of the head, every now and then."""

    def send(request):
        if not of_head:
            answer(BODY, cut=0)(request)
        try:
            for byte in b"HTTP/1.1 200 OK\r\n" + BODY if of_head else BODY:
                request.wfile.write(bytes([byte]))
                request.wfile.flush()
                if site.closing.wait(0.02):
                    return
        except OSError:
            pass

    return send


def test_an_endless_body_ends_where_the_manifest_says(site, tmp_path):
    with pytest.raises(CheckpointError, match=r"/w: sends more than 92384 bytes$"):
        download([site.put("/w", endless)], tmp_path / "w", expected=Expected(bytes=92_384))
    assert os.listdir(tmp_path) == []


def test_an_endless_body_ends_where_no_checkpoint_is_longer(site, tmp_path, monkeypatch):
    monkeypatch.setattr("hydrabench.checkpoints.download.MOST_BYTES", 300_000)
    with pytest.raises(CheckpointError, match=r"/w: sends more than 300000 bytes$"):
        download([site.put("/w", endless)], tmp_path / "w")
    with pytest.raises(CheckpointError, match=rf"/v: offers {len(BODY) * 2} bytes; that is too much$"):
        download([site.put("/v", answer(BODY + BODY))], tmp_path / "w")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("of_head", [False, True], ids=["body", "head"])
def test_a_byte_now_and_then_does_not_hang(site, tmp_path, of_head):
    """50 bytes a second never run into a time-out of the connection, but are far less than `SLOWEST`."""
    url = site.put("/w", dribble(site, of_head=of_head))
    said = r"no answer came in 0\.6 s" if of_head else r"only \d+ bytes came in 0\.2 s"
    with pytest.raises(CheckpointError, match=said + ", at 3 attempts"):
        download([url], tmp_path / "w", timeout=0.2)
    assert os.listdir(tmp_path) == []


def test_a_download_may_take_only_so_long(site, tmp_path, monkeypatch):
    monkeypatch.setattr(Expected, "seconds", 0.1)
    with pytest.raises(CheckpointError, match=r"took too long: \d+ bytes came in the time that is allowed"):
        download([site.put("/w", dribble(site))], tmp_path / "w", timeout=5)
    assert os.listdir(tmp_path) == []


def test_what_a_server_says_is_printed_without_control_characters(site, tmp_path):
    def send(request):
        request.wfile.write(b"HTTP/1.1 429 \x1b[31mquota\x07 exceeded" + b"!" * 500 + b"\r\nContent-Length: 0\r\n\r\n")

    with pytest.raises(CheckpointError, match=r"answered 429 \?\[31mquota\? exceeded!+$") as problem:
        download([site.put("/w", send)], tmp_path / "w")
    assert str(problem.value).isprintable()
    assert len(str(problem.value)) < 200


# Resuming -------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_broke(site, tmp_path):
    url = site.put("/w", ranges(cut=CUT), ranges())
    assert download([url], tmp_path / "w") == sha(BODY)
    first, second = site.asked("/w")
    assert "Range" not in first
    assert (second["Range"], second["If-Range"]) == (f"bytes={CUT}-", '"v1"')
    assert os.listdir(tmp_path) == ["w"]


def test_the_next_call_goes_on_where_a_failed_one_stopped(site, tmp_path):
    """Three attempts of 1000 bytes, then the call fails; the next call asks from byte 3000 on."""
    url = site.put("/w", ranges(cut=1000))
    with pytest.raises(CheckpointError, match=rf"closed after 3000 of {len(BODY)} bytes, at 3 attempts"):
        download([url], tmp_path / "w")
    assert [headers.get("Range") for headers in site.asked("/w")] == [None, "bytes=1000-", "bytes=2000-"]
    assert (tmp_path / "w.part").read_bytes() == BODY[:3000]
    site.put("/w", ranges())
    seen = []
    assert download([url], tmp_path / "w", expected=KNOWN, progress=lambda *now: seen.append(now)) == sha(BODY)
    assert site.asked("/w")[-1]["Range"] == "bytes=3000-"
    assert 3000 < seen[0][0] <= 3000 + RECEIVED_BYTES
    assert seen[0][1] == len(BODY)


OTHER = BODY[::-1]
RESTARTS = {
    "the file changed": ranges(OTHER, etag='"v2"'),
    "no ranges": answer(OTHER),
    "another part": answer(OTHER[5:], status=206, Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}", ETag='"v1"'),
    "no such part": answer(b"", status=416),
    "a part of another version": answer(OTHER[CUT:], status=206, ETag='"v2"',
                                        Content_Range=f"bytes {CUT}-{len(BODY) - 1}/{len(BODY)}"),
}  # fmt: skip


@pytest.mark.parametrize("reply", RESTARTS)
def test_two_versions_are_never_mixed(site, tmp_path, reply):
    url = site.put("/w", ranges(cut=CUT), RESTARTS[reply], ranges(OTHER, etag='"v2"'))
    assert download([url], tmp_path / "w") == sha(OTHER)
    assert site.asked("/w")[1]["Range"] == f"bytes={CUT}-"


@pytest.mark.parametrize("etag", [None, 'W/"v1"'], ids=["none", "weak"])
def test_without_a_strong_etag_a_download_starts_over(site, tmp_path, etag):
    headers = {"ETag": etag} if etag else {}
    url = site.put("/w", answer(cut=CUT, **headers), answer(OTHER, **headers))
    assert download([url], tmp_path / "w") == sha(OTHER)
    assert all("Range" not in headers for headers in site.asked("/w"))


def test_wrong_bytes_are_not_taken_for_a_beginning(site, tmp_path):
    url = site.put("/w", ranges(OTHER), ranges())
    with pytest.raises(CheckpointError, match=r"says the manifest"):
        download([url], tmp_path / "w", expected=KNOWN)
    assert os.listdir(tmp_path) == []
    assert download([url], tmp_path / "w", expected=KNOWN) == sha(BODY)


def test_what_one_address_began_is_not_finished_by_another(site, tmp_path):
    urls = [site.put("/1", ranges(cut=1000)), site.put("/2", ranges(OTHER))]
    assert download(urls, tmp_path / "w") == sha(OTHER)
    assert [headers.get("Range") for headers in site.asked("/2")] == [None]


def test_an_interrupted_download_is_not_the_file(site, tmp_path):
    def interrupt(done, total):
        if done > RECEIVED_BYTES:
            raise KeyboardInterrupt

    url = site.put("/w", ranges())
    with pytest.raises(KeyboardInterrupt):
        download([url], tmp_path / "w", progress=interrupt)
    assert not (tmp_path / "w").exists()
    assert download([url], tmp_path / "w") == sha(BODY)
    begun = int(site.asked("/w")[-1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert RECEIVED_BYTES < begun < len(BODY)


# Zip files ------------------------------------------------------------------------------------


def zipped(members, date=(2020, 1, 1, 0, 0, 0), mode=0o644):
    """The bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, date)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def unpack(tmp_path, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(content)
    return unpack_weights(tmp_path / "in" / "a.zip", tmp_path / "in" / "out")


@pytest.mark.parametrize(
    ("members", "dense", "masked"),
    [
        ({"model_best.pth.tar": b"M", "model_best_dense.pth.tar": b"D"}, b"D", b"M"),
        ({"a/b/checkpoint_Dense.pt": b"D", "a/b/checkpoint.PTH": b"M", "a/readme.txt": b""}, b"D", b"M"),
        ({"checkpoint_dense.pth.tar": b"C", "model_best_dense.pth.tar": b"D"}, b"D", None),
        ({"dense/only.pth.tar": b"M", "__MACOSX/._only_dense.pth": b"x", ".hidden_dense.pt": b"x"}, None, b"M"),
    ],
    ids=["the original's names", "other names", "best of two", "one"],
)
def test_the_dense_and_the_masked_member_are_told_apart_by_name(tmp_path, members, dense, masked):
    found = unpack(tmp_path, zipped(members))
    wanted = {role: content for role, content in (("dense", dense), ("masked", masked)) if content}
    assert {role: path.read_bytes() for role, path in found.items()} == wanted
    stems = {role: path.name.split(".")[0] for role, path in found.items()}
    assert stems == {role: {"dense": "checkpoint_dense", "masked": "checkpoint"}[role] for role in wanted}


@pytest.mark.parametrize("name", ["../x_dense.pth", "a/../../x.pth", "/x.pth", "..\\x.pth", "C:\\x.pth", "C:x.pth"])
def test_a_zip_file_that_leads_out_of_its_folder_is_refused_altogether(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"the zip file holds .*x.*, which leads out of its folder; nothing was"):
        unpack(tmp_path, zipped({"good_dense.pth": b"D", name: b"evil"}))
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "out", "a.zip"}


def test_a_link_in_a_zip_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"'dense\.pth', which leads out of its folder"):
        unpack(tmp_path, zipped({"dense.pth": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777))


GOOD = zipped({"dense.pth": BODY})
BAD_ZIPS = {
    "no weights": (zipped({"readme.md": b"", "a/b.txt": b""}),
                   r"holds no weights \(\.pth\.tar, .*\); it holds a/b\.txt, readme"),
    "nothing": (zipped({}), r"holds no weights .* it holds nothing"),
    "no zip": (BODY, r"what came is not a whole zip file \(File is not a zip file\)"),
    "truncated": (GOOD[:-100], r"what came is not a whole zip file"),
    "damaged": (GOOD[:1000] + b"\0" * 50 + GOOD[1050:], r"what came is not a whole zip file \(.*\)"),
    "two": (zipped({"a_dense.pth": b"", "b_dense.pth": b""}),
            r"holds 2 dense checkpoints \(a_dense\.pth, b_dense\.pth\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_a_zip_file_that_is_of_no_use_is_refused_in_one_line(tmp_path, case):
    content, message = BAD_ZIPS[case]
    with pytest.raises(CheckpointError, match=message) as problem:
        unpack(tmp_path, content)
    assert "\n" not in str(problem.value)
    assert list((tmp_path / "in" / "out").iterdir()) == []


def test_an_absurdly_large_member_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("hydrabench.checkpoints.archive.MOST_BYTES", 999)
    with pytest.raises(CheckpointError, match=r"'dense\.pth' has 1000 bytes, at most 999 are allowed"):
        unpack(tmp_path, zipped({"dense.pth": b"0" * 1000}))


# The cache and its lock file ------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache(empty_cache, monkeypatch):
    """For files that stand for networks."""
    monkeypatch.setattr("hydrabench.checkpoints.cache._require_network", lambda entry, files: None)
    return empty_cache


def entry(url, **changes):
    values = {"id": "hydra/x-99", "url": url, "dataset": "cifar10", "arch": "wrn_28_4", "objective": "trades",
              "density": 0.01, "licence": "none stated"}  # fmt: skip
    return ZooEntry.model_validate(values | changes)


FOLDER = {"model_best_dense.pth.tar": b"D" * 5000, "model_best.pth.tar": b"M" * 9000}
KINDS = {"file": (answer(), {}, BODY), "zip": (answer(zipped(FOLDER)), {"archive": "zip"}, b"D" * 5000)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_fetched_once(site, cache, kind):
    reply, changes, content = KINDS[kind]
    wanted = entry(site.put("/w.pth.tar?dl=1", reply), **changes)
    assert cached_files(wanted) == []
    files = fetch_remote(wanted)
    assert (len(site.requests), files[0].read_bytes()) == (1, content)
    assert fetch_remote(wanted) == fetch_remote(wanted, offline=True) == cached_files(wanted) == files
    assert len(site.requests) == 1
    assert all(path.parent == cache / "zoo" / "hydra" / "x-99" for path in files)
    assert {path.name for path in files[0].parent.iterdir()} == {path.name for path in files} | {".lock"}


def test_a_zip_gives_the_dense_file_first_and_its_masked_twin_beside_it(site, cache):
    dense, masked = fetch_remote(entry(site.put("/w", answer(zipped(FOLDER))), archive="zip"))
    assert (dense.name, masked.name) == ("checkpoint_dense.pth.tar", "checkpoint.pth.tar")
    assert masked.read_bytes() == b"M" * 9000


def test_the_first_fetch_is_written_to_the_lock_file(site, cache):
    fetch_remote(entry(site.put("/w", answer(zipped(FOLDER))), archive="zip"))
    fetch_remote(entry(site.put("/v.safetensors", answer()), id="other"))
    locked = {
        "hydra/x-99": {
            "checkpoint_dense.pth.tar": {"sha256": sha(b"D" * 5000), "bytes": 5000},
            "checkpoint.pth.tar": {"sha256": sha(b"M" * 9000), "bytes": 9000},
        },
        "other": {"checkpoint.safetensors": {"sha256": sha(BODY), "bytes": len(BODY)}},
    }
    assert json.loads((cache / LOCK).read_text()) == {"schema_version": "hydrabench.zoo-lock/1", "checkpoints": locked}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cache_is_fetched_again_and_refused_offline(site, cache, kind, damage):
    reply, changes, content = KINDS[kind]
    wanted = entry(site.put("/w", reply), **changes)
    damage(fetch_remote(wanted)[-1])
    with pytest.raises(CheckpointError, match=r"x-99 is not in the cache .*, or damaged there; fetch it without --off"):
        fetch_remote(wanted, offline=True)
    assert fetch_remote(wanted)[0].read_bytes() == content
    assert len(site.requests) == 2


def test_a_file_that_changed_since_the_first_fetch_is_refused_with_both_hashes(site, cache):
    wanted = entry(site.put("/w", answer()))
    (path,) = fetch_remote(wanted)
    path.unlink()
    site.put("/w", answer(OTHER))
    message = (
        rf"{sha(OTHER)}; right is {len(BODY)} bytes, SHA-256 {sha(BODY)}, says the first fetch, recorded in .*{LOCK}"
    )
    with pytest.raises(CheckpointError, match=message):
        fetch_remote(wanted)
    assert not path.exists()
    (cache / LOCK).unlink()
    assert fetch_remote(wanted)[0].read_bytes() == OTHER


def test_a_folder_that_is_packed_anew_is_the_same_and_one_that_changed_is_not(site, cache):
    """The zip file of a shared folder holds times, so its own hash differs each time it is made."""
    wanted = entry(site.put("/w", answer(zipped(FOLDER))), archive="zip")
    dense, masked = fetch_remote(wanted)
    masked.unlink()
    again = zipped(FOLDER, date=(2021, 1, 1, 0, 0, 0))
    assert again != zipped(FOLDER)
    site.put("/w", answer(again))
    assert fetch_remote(wanted) == [dense, masked]
    masked.unlink()
    site.put("/w", answer(zipped(FOLDER | {"model_best.pth.tar": b"other"})))
    message = (
        rf"gave a checkpoint\.pth\.tar with SHA-256 {sha(b'other')}; right is SHA-256 {sha(b'M' * 9000)}, says the fi"
    )
    with pytest.raises(CheckpointError, match=message):
        fetch_remote(wanted)
    site.put("/w", answer(zipped({"model_best_dense.pth.tar": b"D" * 5000})))
    with pytest.raises(CheckpointError, match=r"gives no checkpoint\.pth\.tar, unlike the first fetch"):
        fetch_remote(wanted)
    assert (dense.read_bytes(), masked.exists()) == (b"D" * 5000, False)
    assert {path.name for path in dense.parent.iterdir()} == {dense.name, ".lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_has_the_last_word_on_a_hash(site, cache, kind):
    reply, changes, content = KINDS[kind]
    wrong, right = (entry(site.put("/w", reply), sha256=known, **changes) for known in ("0" * 64, sha(content)))
    with pytest.raises(
        CheckpointError, match=rf"x-99 could not be fetched: .*SHA-256 {sha(content)}; .*says the manif"
    ):
        fetch_remote(wrong)
    assert not (cache / LOCK).exists()
    fetch_remote(right)
    assert cached_files(wrong) == []


def test_what_cannot_be_fetched_is_one_line_that_says_what_to_do(site, cache):
    wanted = entry(site.put("/w", answer(PAGE)), archive="zip", mirrors=(site.put("/m", answer(BODY)),))
    message = (
        r"^zoo checkpoint hydra/x-99 could not be fetched: what came is not a whole zip file .*\. Try again later, "
    )
    with pytest.raises(
        CheckpointError, match=message + r"or get it with a browser from http\S+/w and give the path of"
    ):
        fetch_remote(wanted)
    with pytest.raises(CheckpointError, match=r"/w: gave a web page .*; http\S+/m: the server answered 404"):
        fetch_remote(wanted.model_copy(update={"mirrors": (site.put("/m", answer(status=404)),)}))
    assert list((cache / "zoo" / "hydra" / "x-99").iterdir()) == [cache / "zoo" / "hydra" / "x-99" / ".lock"]


@pytest.mark.parametrize("text", ["{", '{"checkpoints": {"x": {"../evil": {"sha256": "", "bytes": 1}}}}'])
def test_a_damaged_lock_file_is_refused_rather_than_ignored(site, cache, text):
    cache.mkdir()
    (cache / LOCK).write_text(text)
    with pytest.raises(CheckpointError, match=r"the lock file .* is damaged; put it right, or remove it to trust"):
        fetch_remote(entry(site.put("/w", answer())))
    assert site.requests == []


def test_a_cache_that_cannot_be_written_is_named(site, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(
        CheckpointError, match=r"cannot keep zoo checkpoint .*; set HYDRABENCH_CACHE to a folder with room"
    ):
        fetch_remote(entry(site.put("/w", answer())))


def test_processes_that_want_the_same_checkpoint_at_once_fetch_it_once(site, cache):
    """Each opens the lock by itself, as the ranks of a distributed run do."""
    wanted = entry(site.put("/w", answer(zipped(FOLDER))), archive="zip")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: fetch_remote(wanted), range(6)))
    assert (len(site.requests), found) == (1, [cached_files(wanted)] * 6)


def torch_bytes(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


NO_NETWORKS = {
    "a notice of a quota": (answer(b"quota exceeded, try again tomorrow"), r"is no file of torch\.save, or is damaged"),
    "half of it": (answer(BODY[: len(BODY) // 2]), r"is no file of torch\.save, or is damaged"),
    "another network": (answer(torch_bytes(build_model("cifar_model", (3, 32, 32), 10).state_dict())),
                        r"what came is no wrn_28_4 for cifar10: .* does not fit the architecture"),
    "a program": (answer(torch_bytes({"state_dict": {}, "main": print})), r"running code \([\w.]*print\)"),
    "numbers": (answer(torch_bytes([1, 2, 3])), r"holds no state dict of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_NETWORKS)
def test_what_does_not_load_as_the_network_is_not_trusted(site, empty_cache, kind):
    reply, message = NO_NETWORKS[kind]
    wanted = entry(site.put("/w.pth", reply))
    with pytest.raises(CheckpointError, match=message) as problem:
        fetch_remote(wanted)
    assert "\n" not in str(problem.value)
    assert not (empty_cache / LOCK).exists()
    assert cached_files(wanted) == []
    assert {path.name for path in (empty_cache / "zoo" / "hydra" / "x-99").iterdir()} == {".lock"}


def test_a_released_checkpoint_opens_by_its_id(site, empty_cache, tmp_path, monkeypatch):
    """The manifest says what the file does not: that its network is for SVHN, and the density."""
    network = build_model("cifar_model", (3, 32, 32), 10, generator=torch.Generator().manual_seed(0))
    attach_masks(network, 0.1)
    bake_masks(network)
    file = io.BytesIO()
    torch.save({"epoch": 1, "arch": "other", "state_dict": network.state_dict()}, file)
    url = site.put("/w", answer(zipped({"model_best_dense.pth.tar": file.getvalue()})))
    released = {"id": "hydra/x", "url": url, "archive": "zip", "dataset": "svhn", "arch": "cifar_model",
                "objective": "trades", "density": 0.1, "licence": "none stated"}  # fmt: skip
    for name, entries in (("manifest.yml", []), ("released.yml", [released])):
        (tmp_path / name).write_text(json.dumps({"schema_version": "hydrabench.zoo/1", "checkpoints": entries}))
    monkeypatch.setattr("hydrabench.checkpoints.zoo.shipped", lambda _: tmp_path)
    for _ in range(2):
        header = open_ref("hydra/x").header
        assert (header.arch, header.dataset, header.density) == ("cifar_model", "svhn", 0.1)
    assert len(site.requests) == 1


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("HYDRABENCH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "hydrabench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hydrabench"
    monkeypatch.setenv("HYDRABENCH_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
