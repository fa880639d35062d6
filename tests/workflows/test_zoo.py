"""list, show, fetch, verify and export, on a small zoo of two checkpoints made here."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from hydrabench.checkpoints import load_checkpoint, open_ref, state_of
from hydrabench.cli import main
from hydrabench.errors import CheckpointError, ConfigError, GateError, LedgerError
from hydrabench.evaluators import PgdSettings, VerifiedSettings
from hydrabench.files import sha256_of
from hydrabench.masking import score_masks
from hydrabench.workflows import zoo, zoo_listing
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject

N = 40
SETTINGS = {
    "pgd": PgdSettings(epsilon="8/255", steps=3),
    "ibp": VerifiedSettings(kind="ibp", epsilon="1/255"),
}
VERDICT = {"pgd": "robust", "ibp": "verified"}
MARGIN = {"pgd": "margin", "ibp": "lower"}


@pytest.fixture(scope="module")
def shipped_zoo(line, cpu, tmp_path_factory):
    """A zoo folder with the dense and the finetuned network of the tiny recipe, and two ledgers of each."""
    root = tmp_path_factory.mktemp("zoo")
    entries = []
    for name, source in (("tiny", line.train), ("tiny-90", line.finetune)):
        (root / name).mkdir()
        file = shutil.copy(source / "checkpoint.safetensors", root / name)
        results = []
        for kind, settings in SETTINGS.items():
            run = root / "runs" / name / kind
            evaluate(open_subject(str(file), options=cpu), settings, run, options=cpu, n=N)
            records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
            count = sum(record[VERDICT[kind]] for record in records)
            assert 0 < count < N
            results.append(
                {
                    "settings": settings.model_dump(mode="json"),
                    "n": N,
                    "count": count,
                    "ledger": f"{name}/{kind}.jsonl.gz",
                }
            )
            write_ledger(root / name / f"{kind}.jsonl.gz", records)
        entries.append(
            {
                "id": name,
                "file": f"{name}/checkpoint.safetensors",
                "sha256": sha256_of(root / name / "checkpoint.safetensors"),
                "bytes": (root / name / "checkpoint.safetensors").stat().st_size,
                "dataset": "digits",
                "arch": "cifar_model_bn",
                "objective": "trades",
                "density": 1.0 if name == "tiny" else 0.1,
                "parent": None if name == "tiny" else "tiny",
                "recipe": "tiny",
                "licence": "MIT",
                "results": results,
            }
        )
    shutil.rmtree(root / "runs")
    (root / "manifest.yml").write_text(yaml.safe_dump({"schema_version": "hydrabench.zoo/1", "checkpoints": entries}))
    return root


@pytest.fixture
def folder(shipped_zoo, tmp_path, monkeypatch):
    """A copy of that zoo, in the place of the one that comes with hydrabench."""
    copy = tmp_path / "shipped"
    shutil.copytree(shipped_zoo, copy)
    for module in ("hydrabench.checkpoints.zoo", "hydrabench.workflows.zoo", "hydrabench.workflows.zoo_listing"):
        monkeypatch.setattr(f"{module}.shipped", {"zoo": copy}.__getitem__)
    return copy


def read_ledger(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_ledger(path, records):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def flip(folder, kind, *, margin=None):
    """Turn the shipped verdict of the image whose margin is largest; say that it rested on `margin` if given."""
    path = folder / "tiny-90" / f"{kind}.jsonl.gz"
    records = read_ledger(path)
    chosen = max(records, key=lambda record: abs(record[MARGIN[kind]]))
    assert abs(chosen[MARGIN[kind]]) > 1e-2
    chosen[VERDICT[kind]] = not chosen[VERDICT[kind]]
    if margin is not None:
        chosen[MARGIN[kind]] = margin
    write_ledger(path, records)
    return chosen["index"]


def hydrabench(*arguments):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


# list, show, fetch -----------------------------------------------------------------------------


def test_list_names_every_checkpoint_with_what_it_is(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    sizes = [(folder / name / "checkpoint.safetensors").stat().st_size for name in ("tiny", "tiny-90")]
    clean = [np.mean([one["prediction"] == one["label"] for one in read_ledger(folder / name / "pgd.jsonl.gz")])
             for name in ("tiny", "tiny-90")]  # fmt: skip
    robust = [np.mean([one["robust"] for one in read_ledger(folder / name / "pgd.jsonl.gz")])
              for name in ("tiny", "tiny-90")]  # fmt: skip
    assert hydrabench("list").stdout.splitlines() == [
        "id       dataset  arch            objective  density  clean  robust  verified  size   where",
        f"tiny     digits   cifar_model_bn  trades     1        {100 * clean[0]:.1f}   {100 * robust[0]:.1f}"
        f"              {sizes[0] / 1000:.0f} kB  shipped",
        f"tiny-90  digits   cifar_model_bn  trades     0.1      {100 * clean[1]:.1f}   {100 * robust[1]:.1f}"
        f"              {sizes[1] / 1000:.0f} kB  shipped",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, hydrabench("list").stdout.splitlines())) <= 80
    listed = json.loads(hydrabench("list", "--json").stdout)
    assert [entry["id"] for entry in listed] == ["tiny", "tiny-90"]
    assert listed[1]["results"][1]["settings"].items() >= {"kind": "ibp", "norm": "linf", "epsilon": "1/255"}.items()


def test_show_prints_the_entry_as_json(folder):
    shown = json.loads(hydrabench("show", "tiny-90").stdout)
    assert (shown["id"], shown["parent"], shown["licence"]) == ("tiny-90", "tiny", "MIT")
    assert shown["sha256"] == sha256_of(folder / "tiny-90" / "checkpoint.safetensors")


def test_an_unknown_id_names_the_known_ones(folder):
    for command in ("show", "fetch", "verify"):
        result = hydrabench(command, "tiny90")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: unknown checkpoint 'tiny90'; did you mean 'tiny-90' or 'tiny'? `hydra")
        assert result.stderr.count("\n") == 1


def test_fetch_prints_the_path_of_a_file_whose_hash_is_right(folder):
    path = folder / "tiny" / "checkpoint.safetensors"
    assert hydrabench("fetch", "tiny").stdout == f"{path}\n"
    assert open_ref("tiny").sha256 == sha256_of(path)


@pytest.mark.parametrize("use", [zoo.fetch_entry, open_ref], ids=["fetch", "open"])
def test_a_file_with_another_hash_is_refused_wherever_it_is_used(folder, use):
    path = folder / "tiny" / "checkpoint.safetensors"
    shutil.copy(folder / "tiny-90" / "checkpoint.safetensors", path)
    with pytest.raises(CheckpointError, match=r"zoo checkpoint tiny has SHA-256 \w{16}…, the manifest says \w{16}…;"):
        use("tiny")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"zoo checkpoint tiny should lie at .*; install hydrabench again"):
        use("tiny")


def test_a_manifest_that_is_wrong_or_missing_is_refused_in_one_line(folder):
    manifest = folder / "manifest.yml"
    values = yaml.safe_load(manifest.read_text())
    values["checkpoints"][0] |= {"sha256": "abc", "licence": None}
    manifest.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"manifest\.yml: checkpoints\.0\.sha256: .*; checkpoints\.0\.licence: "):
        zoo_listing.list_entries()
    manifest.unlink()
    with pytest.raises(CheckpointError, match=r"the zoo's manifest .* is missing; install hydrabench again"):
        zoo_listing.list_entries()


# Checkpoints on the web -------------------------------------------------------------------------

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


# verify ----------------------------------------------------------------------------------------


def test_verify_passes_on_what_was_shipped(folder, cpu):
    agreed = [f"{name} {protocol}: 40/40 records as shipped" for name in ("tiny", "tiny-90") for protocol in
              ("pgd-3@2", "ibp@1")]  # fmt: skip
    assert zoo.verify_shipped([], options=cpu) == agreed
    assert zoo.verify_shipped(["tiny-90"], options=cpu) == agreed[2:]
    result = hydrabench("verify", "tiny", "--json", "--device", "cpu")
    assert (result.exit_code, json.loads(result.stdout)) == (0, agreed[:2])
    assert hydrabench("verify", "tiny", "--device", "cpu").stdout == "2 ledgers agree\n"


@pytest.mark.parametrize("kind", SETTINGS)
def test_verify_exits_1_and_names_the_image_whose_verdict_was_turned(folder, cpu, kind):
    index = flip(folder, kind)
    protocol = SETTINGS[kind].protocol
    result = hydrabench("verify", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (1, "")
    problem = f"error: 1 records differ from the shipped ledgers: tiny-90 {protocol} image {index}"
    assert result.stderr.splitlines()[-1] == problem
    assert f"tiny-90 {protocol}: 39/40 records as shipped" in result.stderr
    assert len(zoo.verify_shipped(["tiny"], options=cpu)) == 2


@pytest.mark.parametrize(("margin", "excused"), [(9e-6, True), (-9e-6, True), (1.1e-5, False)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_verdict_that_rests_on_a_margin_next_to_zero_may_turn_on_another_machine(folder, cpu, kind, margin, excused):
    """The tolerance is 1e-5."""
    flip(folder, kind, margin=margin)
    if excused:
        assert len(zoo.verify_shipped(["tiny-90"], options=cpu)) == 2
    else:
        with pytest.raises(GateError, match=r"1 records differ from the shipped ledgers"):
            zoo.verify_shipped(["tiny-90"], options=cpu)


def test_verify_notices_another_number_and_a_value_that_cannot_be(folder, cpu):
    path = folder / "tiny" / "ibp.jsonl.gz"
    records = read_ledger(path)
    write_ledger(path, [records[0] | {"lower": records[0]["lower"] + 1.0}, *records[1:]])
    with pytest.raises(GateError, match=r"1 records differ .*: tiny ibp@1 image 0$"):
        zoo.verify_shipped(["tiny"], options=cpu)
    write_ledger(path, [records[0] | {"lower": None}, *records[1:]])
    with pytest.raises(LedgerError, match=r"a record of the shipped ledger tiny/ibp.jsonl.gz has lower null: input"):
        zoo.verify_shipped(["tiny"], options=cpu)


def test_verify_notices_other_images_and_names_ten_of_many(folder, cpu):
    path = folder / "tiny" / "pgd.jsonl.gz"
    write_ledger(path, [record | {"input_sha": "0" * 64} for record in read_ledger(path)])
    with pytest.raises(GateError, match=r"40 records differ .*image 0; .*image 9 and 30 more$"):
        zoo.verify_shipped(["tiny"], options=cpu)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"the shipped ledger .*ibp\.jsonl\.gz is missing or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:99]), r"the shipped ledger .* is missing or damaged"),
        (lambda path: path.write_bytes(b"plain"), r"the shipped ledger .* is missing or damaged"),
        (lambda path: write_ledger(path, read_ledger(path)[:-1]), r"has 39 records, the manifest says 40"),
    ],
    ids=["missing", "truncated", "not gzip", "a record short"],
)
def test_a_damaged_ledger_is_refused_in_one_line(folder, cpu, damage, message):
    damage(folder / "tiny" / "ibp.jsonl.gz")
    with pytest.raises(LedgerError, match=message):
        zoo.verify_shipped(["tiny"], options=cpu)


# export ----------------------------------------------------------------------------------------


def test_a_pruned_checkpoint_goes_from_dense_to_masked_and_back_to_the_same_bytes(folder, tmp_path):
    masked, dense = tmp_path / "masked.safetensors", tmp_path / "dense.safetensors"
    result = hydrabench("export", "tiny-90", "--format", "masked", "--out", masked)
    assert result.exit_code == 0
    assert f"SHA-256 {sha256_of(masked)}" in result.stdout
    assert (load_checkpoint(masked).header.layout, len(score_masks(load_checkpoint(masked).network))) == ("masked", 4)
    assert hydrabench("export", masked, "--format", "dense", "--out", dense).exit_code == 0
    assert dense.read_bytes() == (folder / "tiny-90" / "checkpoint.safetensors").read_bytes()


def test_a_masked_run_is_exported_to_the_weights_it_applies(folder, line, tmp_path):
    dense = tmp_path / "dense.safetensors"
    assert hydrabench("export", line.prune, "--format", "dense", "--out", dense).exit_code == 0
    exported, source = load_checkpoint(dense), load_checkpoint(line.prune / "checkpoint.safetensors")
    assert (exported.header.layout, exported.header.phase) == ("dense", "prune")
    source.baked()
    applied = state_of(source.network)
    assert all(torch.equal(tensor, applied[key]) for key, tensor in state_of(exported.network).items())
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exported.network(images), source.network(images))


def test_export_does_not_overwrite(folder, tmp_path):
    target = tmp_path / "mine.safetensors"
    target.write_text("precious")
    result = hydrabench("export", "tiny", "--format", "dense", "--out", target)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {target} exists already; choose another --out\n"
    assert target.read_text() == "precious"


def test_export_of_nothing_writes_nothing(folder, tmp_path):
    result = hydrabench("export", tmp_path / "no.safetensors", "--format", "dense", "--out", tmp_path / "new" / "x")
    assert (result.exit_code, result.stderr) == (1, f"error: no checkpoint at {tmp_path / 'no.safetensors'}\n")
    assert not (tmp_path / "new").exists()
    assert hydrabench("export", "tiny", "--format", "tflite", "--out", tmp_path / "x").exit_code == 2
