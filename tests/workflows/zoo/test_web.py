"""Checkpoints on the web in the lists of a zoo: chosen by their properties, downloaded once, never needed offline."""

from __future__ import annotations

import http.server
import io
import json
import threading
import zipfile

import pytest
import yaml
from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.errors import CheckpointError
from hydrabench.workflows import zoo
from tests.helpers.small_zoo import hydrabench

FOLDER = "/folder?dl=1"
EXTRA = {"arch": "wrn_28_4", "dataset": "svhn", "objective": "stability", "density": 0.01}


@pytest.fixture
def web(folder, tmp_path, monkeypatch):
    """Two more checkpoints, released by others on a server of this machine; yields the paths asked of it.

    The zip file of hydra/a comes without a length, as shared folders do; /b does not exist.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model_best_dense.pth.tar", b"dense" * 500_000)
        archive.writestr("model_best.pth.tar", b"masked")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path in (FOLDER, "/length") else 404)
            if self.path == "/length":
                self.send_header("Content-Length", str(len(content.getvalue())))
            self.end_headers()
            if self.path != "/b":
                self.wfile.write(content.getvalue())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    entries = [
        {"id": name, "url": root + path, "licence": "none stated", **properties}
        for name, path, properties in (
            ("hydra/a", FOLDER, {"archive": "zip", **EXTRA}),
            ("hydra/b", "/b", {**EXTRA, "dataset": "digits", "objective": "trades", "density": 0.1}),
            ("hydra/c", "/length", {"archive": "zip", **EXTRA}),
        )
    ]
    (folder / "released.yml").write_text(yaml.safe_dump({"schema_version": "hydrabench.zoo/1", "checkpoints": entries}))
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["tiny", "tiny-90", "hydra/a", "hydra/b", "hydra/c"]),
        (["--dataset", "digits"], ["tiny", "tiny-90", "hydra/b"]),
        (["--arch", "wrn_28_4"], ["hydra/a", "hydra/b", "hydra/c"]),
        (["--objective", "trades"], ["tiny", "tiny-90", "hydra/b"]),
        (["--density", "0.1"], ["tiny-90", "hydra/b"]),
        (["--density", "0.10", "--arch", "cifar_model_bn", "--dataset", "digits"], ["tiny-90"]),
        (["--density", "1", "--dataset", "svhn"], []),
    ],
)
def test_list_keeps_what_has_all_the_wanted_properties(web, options, found):
    result = hydrabench("list", "--json", *options)
    assert (result.exit_code, [entry["id"] for entry in json.loads(result.stdout)]) == (0, found)
    table = hydrabench("list", *options)
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == found
    assert table.stderr == ("" if found else "no checkpoint has all of these properties\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "shvn"], "unknown dataset 'shvn'; did you mean 'svhn'? choose one of: digits, svhn"),
        (["--arch", "x"], "unknown arch 'x'; choose one of: cifar_model_bn, wrn_28_4"),
        (["--objective", "adv"], "unknown objective 'adv'; choose one of: stability, trades"),
        (
            ["--density", "99"],
            "no checkpoint has density 99, the fraction of weights kept; choose one of: 0.01, 0.1, 1",
        ),
    ],
)
def test_list_refuses_a_property_that_no_checkpoint_has(web, options, message):
    result = hydrabench("list", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: {message}\n")


@pytest.mark.parametrize("name", ["hydra/a", "hydra/c"])
def test_fetch_downloads_once_and_prints_the_path_alone(web, tmp_path, name, monkeypatch):
    monkeypatch.setattr("hydrabench.checkpoints.cache._require_network", lambda entry, files: None)  # no real ones
    result = hydrabench("fetch", name)
    dense = tmp_path / "cache" / "zoo" / name / "checkpoint_dense.pth.tar"
    assert (result.exit_code, result.stdout) == (0, f"{dense}\n")
    assert dense.read_bytes() == b"dense" * 500_000
    assert f"with its scores: {dense.with_name('checkpoint.pth.tar')}\n" in result.stderr
    assert f"{name}, MB: 3/3" in result.stderr or name == "hydra/a"
    assert hydrabench("fetch", name, "--offline").stdout == result.stdout
    assert hydrabench("fetch", name).stdout == result.stdout
    assert web == [FOLDER if name == "hydra/a" else "/length"]
    where = {entry["id"]: entry["where"] for entry in json.loads(hydrabench("list", "--json").stdout)}
    assert where == {"tiny": "shipped", "tiny-90": "shipped", "hydra/a": "web", "hydra/b": "web", "hydra/c": "web",
                     name: "cached"}  # fmt: skip


@pytest.mark.parametrize("command", ["attack", "certify", "finetune"])
def test_whatever_downloads_a_checkpoint_shows_how_much_has_come(web, tmp_path, command):
    """The file is no network, which is found once it is there."""
    given = ["--config", "digits-trades"] if command == "finetune" else []
    out = str(tmp_path / "run")
    result = CliRunner().invoke(main, [command, *given, "--ckpt", "hydra/c", "--data-dir", str(tmp_path), "--out", out])
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[0].startswith("fetch hydra/c, MB: 3/3")
    assert web == ["/length"]


def test_a_download_of_unknown_size_tells_how_much_has_come(web, monkeypatch):
    monkeypatch.setattr("hydrabench.workflows.opening.LOG_SECONDS", 0.0)
    lines = [line for line in hydrabench("fetch", "hydra/a").stderr.splitlines() if line.endswith(" MB")]
    assert lines[0] == "fetch hydra/a: 0 MB"
    assert lines[-1] == "fetch hydra/a: 2 MB"


def test_fetch_of_what_is_not_there_is_one_line(web, tmp_path):
    result = hydrabench("fetch", "hydra/b")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "error: zoo checkpoint hydra/b could not be fetched: http://127.0.0.1:" in result.stderr
    assert "/b: the server answered 404 Not Found. Try again later, or get it with a browser from" in result.stderr
    offline = hydrabench("fetch", "hydra/a", "--offline")
    assert (offline.exit_code, web) == (1, ["/b"])
    cache = tmp_path / "cache" / "zoo" / "hydra" / "a"
    expected = (
        f"error: zoo checkpoint hydra/a is not in the cache {cache}, or damaged there; fetch it without --offline\n"
    )
    assert offline.stderr == expected


def test_a_shipped_checkpoint_is_there_offline(web, folder):
    assert hydrabench("fetch", "tiny", "--offline").stdout == f"{folder / 'tiny' / 'checkpoint.safetensors'}\n"
    assert web == []


def test_verify_passes_over_what_has_no_shipped_ledger_unless_it_is_named(web, cpu, capsys):
    assert len(zoo.verify_shipped([], options=cpu)) == 4
    assert "skipped: 3 checkpoints of which no ledger is shipped\n" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"^no ledger of hydra/a is shipped, so there is nothing to compare with"):
        zoo.verify_shipped(["tiny", "hydra/a"], options=cpu)
    assert web == []
