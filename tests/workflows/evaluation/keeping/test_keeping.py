"""Stored adversarial images: judged from the disk, and the same after a kill."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import hydrabench as hb
from hydrabench.attacks import lengths
from hydrabench.cli import main
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.evaluators import EVALUATORS, PgdSettings, parse_settings, record_of, recorded_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import AttemptLog, ExampleStore, RunFolder, parse_record, read_run
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.verifying import verify_run
from tests.helpers.keeping import CASES, PGD, RADIUS, same, settings_of, stored


@pytest.mark.parametrize("name", CASES)
def test_every_broken_image_has_one_example_that_is_judged_from_the_disk_alone(runs, subject, cpu, name):
    run = read_run(runs / name)
    settings = recorded_settings(run.header["settings"], run.header["protocol"])
    records = [parse_record(line, record_of(settings)) for line in run.records()]
    within = {one.index: one.example_within(run.header["settings"]) for one in records}
    within = {index: most for index, most in within.items() if most is not None}
    found = stored(runs / name)
    assert found.keys() == within.keys()
    assert len(found) >= 2
    images, epsilon = subject.test_images(cpu), float(settings.epsilon)
    for index, pixels in found.items():
        assert pixels.dtype == np.float32
        point, image = torch.from_numpy(pixels), images.take(torch.tensor([index]))[0].float() / 255
        assert point.min() >= 0
        assert point.max() <= 1
        (length,) = lengths((point.double() - image.double())[None], settings.norm).tolist()
        assert 0 < length <= within[index] * (1 + (name in ("fmn", "radii")) * 1e-11)
        assert within[index] <= epsilon or settings.kind == "fmn"
        if settings.kind != "smoothed":
            assert subject.network(point[None]).argmax(1).item() != int(images.labels[index])
    summary = run.summary()
    assert summary["adversarial_sha256"] == sha256_of(run.path / "adversarial" / "index.jsonl")
    assert run.header["adversarial"] == {
        "images": len(found),
        "shards": len(run.examples.shards()),
        "list_sha256": summary["adversarial_sha256"],
    }
    assert (run.header["keep"], "keep" in run.header["settings"]) == ("adversarial", False)


def test_keeping_changes_no_record_and_no_protocol(runs, subject, cpu, comparable, tmp_path):
    for name in ("pgd", "autoattack"):
        values, n = CASES[name]
        evaluate(subject, parse_settings(values), tmp_path / name, options=cpu, n=n)
        assert comparable(tmp_path / name) == comparable(runs / name)
        assert not (tmp_path / name / "adversarial").exists()


def test_one_shard_a_block_and_the_shards_of_two_rounds_are_numbered_on(runs):
    assert [shard.file for shard in ExampleStore(runs / "pgd").shards()] == [f"{n:05d}.safetensors" for n in range(3)]


def test_an_example_that_does_not_hold_when_it_is_read_back_breaks_nothing(subject, cpu, tmp_path, monkeypatch, capsys):
    """Here two images are classified right as soon as their examples come from the disk."""
    values = settings_of({**PGD, "epsilon": "64/255"})
    before = evaluate(subject, values, tmp_path / "a", options=cpu, n=200)
    turned = set(list(stored(tmp_path / "a"))[2:60:57])
    assert len(turned) == 2
    original = EVALUATORS["pgd"]

    def classes(network, block, settings):
        found, labels = original.classes(network, block, settings), block.labels.tolist()
        told = zip(block.indices, found, labels, strict=True)
        return [label if index in turned else one for index, one, label in told]

    monkeypatch.setitem(EVALUATORS, "pgd", replace(original, classes=classes))
    after = evaluate(subject, values, tmp_path / "b", options=cpu, n=200)
    counts = [one["metrics"]["robust_accuracy"]["count"] for one in (before, after)]
    assert counts[1] == counts[0] + 2
    assert stored(tmp_path / "b").keys() == stored(tmp_path / "a").keys() - turned
    assert capsys.readouterr().err.count("its adversarial image, read back, is classified as its label") == 2


def test_of_autoattack_such_an_image_meets_the_next_attack(subject, cpu, tmp_path, monkeypatch):
    original = EVALUATORS["autoattack"]
    monkeypatch.setitem(
        EVALUATORS, "autoattack", replace(original, classes=lambda _network, block, _settings: block.labels.tolist())
    )
    values, n = CASES["autoattack"]
    evaluate(subject, settings_of(values), tmp_path / "run", options=cpu, n=n)
    attempts = AttemptLog(tmp_path / "run").read(("clean", "pgd-10", "apgd-ce"))
    assert not [one for one in attempts if one.broken and one.attack != "clean"]
    assert sum(one.attack == "apgd-ce" for one in attempts) == n - sum(one.broken for one in attempts)
    assert not stored(tmp_path / "run")


@pytest.mark.parametrize("moment", ["write", "add", "records"])
def test_a_run_that_is_killed_goes_on_to_the_same_examples(
    runs, subject, cpu, comparable, tmp_path, moment, monkeypatch
):
    """Killed in the second block: before the shard has its name on the list, after that, and after the records."""
    patch = pytest.MonkeyPatch()
    place, name = {"write": (ExampleStore, "write"), "add": (ExampleStore, "add"), "records": (RunFolder, "append")}[
        moment
    ]
    original, calls = getattr(place, name), []

    def killed(self, *arguments):
        found = original(self, *arguments)
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    patch.setattr(place, name, killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, settings_of(PGD), tmp_path / "run", options=cpu, n=230)
    patch.undo()
    assert len(list((tmp_path / "run" / "adversarial").glob("*.safetensors"))) == 2
    evaluate(subject, settings_of(PGD), tmp_path / "run", options=cpu, n=230, resume=True)
    assert comparable(tmp_path / "run") == comparable(runs / "pgd")
    assert same(stored(tmp_path / "run"), stored(runs / "pgd"))
    assert len(list((tmp_path / "run" / "adversarial").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("kept", [3, 25, 38])
def test_of_a_share_that_is_half_logged_the_rest_is_attacked_again(runs, subject, cpu, comparable, tmp_path, kept):
    """What a kill leaves: attempts up to any line, of which the last may be torn."""
    shutil.copytree(runs / "autoattack", tmp_path / "run")
    folder = tmp_path / "run"
    (folder / "summary.json").unlink()
    (folder / "records.jsonl").unlink()
    lines = (folder / "attacks.jsonl").read_text().splitlines(keepends=True)
    (folder / "attacks.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    header = json.loads((folder / "run.json").read_text()) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(header))
    values, n = CASES["autoattack"]
    evaluate(subject, settings_of(values), folder, options=cpu, n=n, resume=True)
    assert comparable(folder) == comparable(runs / "autoattack")
    assert same(stored(folder), stored(runs / "autoattack"))
    listed = {shard.file for shard in ExampleStore(folder).shards()}
    assert {path.name for path in (folder / "adversarial").glob("*.safetensors")} == listed


def test_a_run_grows_with_its_examples(runs, subject, cpu, tmp_path):
    for n in (100, 230):
        evaluate(subject, settings_of(PGD), tmp_path / "run", options=cpu, n=n, resume=n > 100)
    assert same(stored(tmp_path / "run"), stored(runs / "pgd"))


def test_verify_judges_every_example_and_finds_nothing_in_a_run_as_it_was(runs, cpu):
    for name in CASES:
        found = verify_run(runs / name, options=cpu, sample=1)
        assert not found.differing
        assert [one.index for one in found.examples] == list(stored(runs / name))


def test_an_evaluator_that_returns_no_points_cannot_keep_them(subject, cpu, tmp_path, monkeypatch):
    monkeypatch.setitem(EVALUATORS, "pgd", replace(EVALUATORS["pgd"], points=None))
    with pytest.raises(ConfigError, match="pgd returns no adversarial images, so none can be kept; leave out --keep"):
        evaluate(subject, settings_of(PGD), tmp_path / "run", options=cpu, n=10)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "everything"], "pgd: keep: input should be 'adversarial' .got 'everything'."),
        (
            ["--attack", "clean", "--keep", "adversarial"],
            "--keep is for .*; with clean leave it out",
        ),
    ],
)
def test_the_command_says_what_can_be_kept(options, said):
    result = CliRunner().invoke(main, ["attack", "--ckpt", "digits-trades-95", *options])
    assert result.exit_code != 0
    assert re.search(said, result.stderr)


def test_the_functions_keep_and_hand_out_examples(subject, cpu):
    run = hb.attack(subject.network, "digits", "pgd", RADIUS, n=60, steps=4, keep="adversarial", device="cpu")
    indices, pixels = run.adversarial()
    assert indices.tolist() == [index for index in run.records.index if _broken(run.records.loc[index])]
    assert pixels.shape == (len(indices), 1, 8, 8)
    without = hb.attack(subject.network, "digits", "pgd", RADIUS, n=10, steps=4, device="cpu")
    with pytest.raises(LedgerError, match="keeps no adversarial images; attack again with keep='adversarial'"):
        without.adversarial()


def _broken(record):
    return not record["robust"] and record["broken_by"] != "clean"


def test_a_recipe_says_so_in_its_evaluate_section(make_recipe):
    recipe = make_recipe(evaluate=[{"kind": "pgd", "steps": 3, "keep": "adversarial"}])
    assert recipe.evaluate[0].keep == "adversarial"
    assert recipe.evaluate[0].protocol == PgdSettings(epsilon="8/255", steps=3).protocol
