"""verify and export, on a small zoo of two checkpoints made here."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from hydrabench.checkpoints import load_checkpoint, state_of
from hydrabench.errors import GateError, LedgerError
from hydrabench.evaluators import SmoothingSettings
from hydrabench.files import sha256_of
from hydrabench.ledger import read_run
from hydrabench.masking import score_masks
from hydrabench.workflows import zoo
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from tests.helpers.small_zoo import MARGIN, SETTINGS, VERDICT, N, hydrabench, read_ledger, write_ledger


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


def test_verify_passes_on_what_was_shipped(folder, cpu):
    agreed = [f"{name} {protocol}: 40/40 records as shipped" for name in ("tiny", "tiny-90") for protocol in
              ("pgd-3@2", "ibp@1")]  # fmt: skip
    assert zoo.verify_shipped([], options=cpu) == agreed
    assert zoo.verify_shipped(["tiny-90"], options=cpu) == agreed[2:]
    result = hydrabench("verify", "tiny", "--json", "--device", "cpu")
    assert (result.exit_code, json.loads(result.stdout)) == (0, agreed[:2])
    assert hydrabench("verify", "tiny", "--device", "cpu").stdout == "2 ledgers agree\n"


def test_a_smoothed_ledger_is_listed_as_certified_and_twenty_of_its_images_are_drawn_again(folder, cpu, tmp_path):
    settings = SmoothingSettings(sigma=0.25, samples=200, n0=20, radii=(0.0, 0.1))
    evaluate(open_subject("tiny", options=cpu), settings, tmp_path / "run", options=cpu, n=N)
    records = list(read_run(tmp_path / "run").records())
    held = sum(one["prediction"] == one["label"] and one["radius"] >= 0.1 for one in records)
    ledger = "tiny/smoothing.jsonl.gz"
    write_ledger(folder / ledger, records)
    manifest = yaml.safe_load((folder / "manifest.yml").read_text())
    result = {"settings": settings.model_dump(mode="json"), "n": N, "count": held, "radius": 0.1, "ledger": ledger}
    manifest["checkpoints"][0]["results"] = [result]
    (folder / "manifest.yml").write_text(yaml.safe_dump(manifest))
    (listed, _) = json.loads(hydrabench("list", "--json").stdout)
    assert 0 < held < N
    assert listed["accuracy"] == {"clean": None, "robust": None, "verified": None, "certified": held / N}
    assert listed["radius"] == "L2 0.1"
    assert "L2 0.1" in hydrabench("list").stdout
    (agreed,) = zoo.verify_shipped(["tiny"], options=cpu)
    assert agreed == f"tiny {settings.protocol}: 20/20 records as shipped; 20 take long and were left out"
    write_ledger(folder / ledger, [{**records[0], "selected": 1 - records[0]["selected"]}, *records[1:]])
    with pytest.raises((GateError, LedgerError), match=r"tiny"):
        zoo.verify_shipped(["tiny"], options=cpu)


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
