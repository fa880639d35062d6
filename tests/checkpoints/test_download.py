"""Downloads from a server of our own with every fault that servers have."""

from __future__ import annotations

import os
import socket

import pytest

from hydrabench.checkpoints.download import Expected, download
from hydrabench.checkpoints.transfer import RECEIVED_BYTES, Refused, require_secure
from hydrabench.errors import CheckpointError
from tests.helpers.server import BODY, OTHER, PAGE, answer, move, ranges, sha, stall

CUT = 2 * RECEIVED_BYTES + 1000


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
        download([url], tmp_path / "w", expected=expected, timeout=0.1 if fault == "slow" else 10)
    assert str(problem.value).startswith(f"{url}: ")
    assert "\n" not in str(problem.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_leads_on_to_the_mirror(site, tmp_path, fault):
    reply, expected, _ = FAULTS[fault]
    urls = [site.put("/w", reply(site)), site.put("/mirror", answer())]
    assert download(urls, tmp_path / "w", expected=expected, timeout=0.1 if fault == "slow" else 10) == sha(BODY)
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
