"""Stored adversarial images: judged from the disk, the same after a kill; whatever is altered is found."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import hydrabench as hb
from hydrabench.attacks import lengths
from hydrabench.cli import main
from hydrabench.errors import ConfigError, DataError, GateError, LedgerError
from hydrabench.evaluators import EVALUATORS, PgdSettings, parse_settings, record_of, recorded_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import AttemptLog, ExampleStore, RunFolder, VerifiedRecord, open_run, parse_record, read_run
from hydrabench.reporting import summarize
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.reporting import write_report
from hydrabench.workflows.verifying import verify_run

RADIUS = "32/255"
CASES = {
    "pgd": ({"kind": "pgd", "epsilon": RADIUS, "steps": 4}, 230),
    "curve": ({"kind": "pgd", "epsilon": f"16/255,{RADIUS}", "steps": 4}, 30),
    "l2": ({"kind": "pgd", "norm": "l2", "epsilon": "0.8", "steps": 4}, 30),
    "fmn": ({"kind": "fmn", "norm": "l2", "epsilon": "0.5", "steps": 10}, 20),
    "hydra": ({"kind": "hydra", "epsilon": RADIUS, "steps": 20}, 30),
    "square": ({"kind": "square", "epsilon": RADIUS, "queries": 60}, 30),
    "autoattack": ({"kind": "autoattack", "epsilon": RADIUS, "attacks": ("apgd-ce",), "cascade": True}, 20),
    "smoothed": ({"kind": "smoothed", "epsilon": "1.0", "sigma": 0.1, "steps": 4, "copies": 4, "draws": 100}, 20),
    "radii": ({"kind": "crown-ibp", "epsilon": RADIUS, "search_radius": True, "tolerance": RADIUS}, 12),
    "exact": ({"kind": "exact", "epsilon": RADIUS, "max_subproblems": 20}, 12),
    "cascade": ({"kind": "cascade", "epsilon": RADIUS, "methods": ("ibp", "exact"), "max_subproblems": 20}, 12),
}
PGD, _ = CASES["pgd"]


def settings_of(values):
    keeps = values["kind"] not in ("exact", "cascade", "crown-ibp")
    return parse_settings({**values, "keep": "adversarial"} if keeps else values)


@pytest.fixture(scope="module")
def subject(cpu):
    return open_subject("digits-trades-95", options=cpu)


@pytest.fixture(scope="module")
def runs(subject, cpu, tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    for name, (values, n) in CASES.items():
        evaluate(subject, settings_of(values), root / name, options=cpu, n=n)
    return root


@pytest.fixture
def copy(runs, tmp_path):
    shutil.copytree(runs / "pgd", tmp_path / "pgd")
    return tmp_path / "pgd"


def stored(folder):
    """The examples of a run: image -> pixels."""
    return {
        index: pixels for _, one in ExampleStore(folder) for index, pixels in zip(one.indices, one.pixels, strict=True)
    }


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


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


# What was altered ------------------------------------------------------------------------------


def seal(folder):
    """Write all hashes anew: what only judging the examples again can find."""
    path = folder / "adversarial" / "index.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["sha256"] = sha256_of(folder / "adversarial" / line["file"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text()) | {"adversarial_sha256": sha256_of(path)}
    (folder / "summary.json").write_text(json.dumps(summary))


def edit(folder, change, file="00000.safetensors"):
    path = folder / "adversarial" / file
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def swap(tensors):
    tensors["pixels"][[0, 1]] = tensors["pixels"][[1, 0]]


def outside(tensors):
    tensors["pixels"][0].flat[0] = min(tensors["pixels"][0].flat[0] + 0.2, 1.0)


def out_of_range(tensors):
    tensors["pixels"][0].flat[int(tensors["pixels"][0].argmax())] = 1.0001


def not_a_number(tensors):
    tensors["pixels"][0].flat[0] = np.nan


@pytest.mark.parametrize(
    ("change", "count", "said"),
    [
        (swap, 2, "from the image in L∞, its record says 0.125490196"),
        (outside, 1, "from the image in L∞, its record says 0.125490196"),
        (out_of_range, 1, "its stored adversarial image has pixels outside of [0, 1]"),
        (not_a_number, 1, "its stored adversarial image has pixels outside of [0, 1]"),
    ],
)
def test_verify_names_every_altered_example(copy, change, count, said):
    edit(copy, change)
    seal(copy)
    result = CliRunner().invoke(main, ["verify", str(copy), "--device", "cpu", "--sample", "3"])
    assert result.exit_code == 1
    strange = [text for text in result.stdout.splitlines() if "as recorded" not in text]
    assert [text.split(":")[0] for text in strange] == [f"image {n}" for n in list(stored(copy))[:count]]
    assert all(said in text for text in strange)
    total = len(stored(copy))
    assert f"error: {count} of {total} stored adversarial images are not what their records say" in result.stderr


def test_verify_finds_the_clean_image_in_place_of_an_example(copy, subject, cpu):
    images = subject.test_images(cpu)

    def change(tensors):
        tensors["pixels"][0] = images.take(torch.tensor(tensors["index"][:1])).float().numpy()[0] / 255

    edit(copy, change)
    seal(copy)
    found = verify_run(copy, options=cpu, sample=1)
    (one,) = found.differing
    assert one.index == next(iter(stored(copy)))
    assert "is classified as its label" in str(one)


def test_verify_judges_every_example_and_finds_nothing_in_a_run_as_it_was(runs, cpu):
    for name in CASES:
        found = verify_run(runs / name, options=cpu, sample=1)
        assert not found.differing
        assert [one.index for one in found.examples] == list(stored(runs / name))


def relist(folder, change):
    path = folder / "adversarial" / "index.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(text) + "\n" for text in lines))


def wrong_index(folder):
    """An example is said to be of an image that nothing broke, in the shard and on the list."""
    index = next(n for n in range(230) if n not in stored(folder))

    def on_list(lines):
        lines[0]["images"][0] = index

    edit(folder, lambda tensors: tensors["index"].__setitem__(0, index))
    relist(folder, on_list)


def test_verify_names_a_wrong_index_on_both_sides(copy, cpu):
    first = next(iter(stored(copy)))
    wrong_index(copy)
    seal(copy)
    found = verify_run(copy, options=cpu, sample=1).differing
    strange = next(iter(stored(copy)))
    assert {one.index: one.differences[0] for one in found} == {
        strange: "a stored adversarial image is there, but its record has none",
        first: "its record says broken, but no adversarial image of it is stored",
    }
    with pytest.raises(LedgerError, match=rf"has no example of image {first}, whose record says broken"):
        read_evaluation(read_run(copy))


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (
            lambda copy: edit(copy, outside),
            r"00000\.safetensors has SHA-256 .*: examples of images \d+ to",
        ),
        (lambda copy: (copy / "adversarial" / "00001.safetensors").unlink(), r"00001\.safetensors is missing"),
        (lambda copy: relist(copy, list.pop), r"index\.jsonl has SHA-256 .*, its summary\.json says"),
        (lambda copy: (copy / "adversarial" / "index.jsonl").write_text("x\n"), r"index\.jsonl has SHA-256"),
    ],
)
def test_an_edited_store_is_refused_by_resume_report_and_verify(copy, subject, cpu, alter, said):
    alter(copy)
    with pytest.raises(LedgerError, match=said):
        evaluate(subject, settings_of(PGD), copy, options=cpu, n=230, resume=True)
    with pytest.raises(LedgerError, match=said):
        read_evaluation(read_run(copy))
    with pytest.raises(LedgerError, match=said):
        verify_run(copy, options=cpu)


def test_an_unfinished_run_with_an_edited_store_is_not_gone_on_with(copy, subject, cpu):
    (copy / "summary.json").unlink()
    (copy / "run.json").write_text(json.dumps(json.loads((copy / "run.json").read_text()) | {"status": "running"}))
    edit(copy, outside)
    with pytest.raises(LedgerError, match=r"00000\.safetensors has SHA-256"):
        evaluate(subject, settings_of(PGD), copy, options=cpu, n=230, resume=True)


def test_what_is_kept_cannot_change_on_the_way(copy, subject, cpu):
    with pytest.raises(LedgerError, match='keep was "adversarial" and is now null'):
        evaluate(subject, parse_settings(PGD), copy, options=cpu, n=230, resume=True)


# Where it is asked for -------------------------------------------------------------------------


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


# In a report ------------------------------------------------------------------------------------


def certified(run, path, indices):
    """Write a ledger that calls these images of a run verified."""
    lines = list(run.records())
    known = ("index", "input_sha", "label", "prediction", "seconds")
    header = {key: run.header[key] for key in ("checkpoint", "dataset", "precision", "origin")}
    settings = {"kind": "ibp", "norm": "linf", "epsilon": RADIUS}
    forged = open_run(path, {**header, "command": "certify", "settings": settings, "protocol": "ibp@1"}, resume=False)
    told = [(line, line["index"] in indices) for line in lines]
    forged.append(
        [
            VerifiedRecord(*[line[key] for key in known], verified=holds, lower=0.1 if holds else -9.0)
            for line, holds in told
        ]
    )
    forged.finish(summarize("ibp", list(forged.records()), EVALUATORS["ibp"].read(settings)))


def test_a_contradiction_comes_with_the_image_its_adversarial_image_and_the_perturbation(runs, tmp_path):
    run = read_run(runs / "pgd")
    index, pixels = list(stored(run.path).items())[1]
    certified(run, tmp_path / "runs" / "ibp", {index})
    shutil.copytree(run.path, tmp_path / "runs" / "pgd")
    with pytest.raises(GateError, match=f"broken at L∞ {RADIUS} in .*: image {index};"):
        write_report([tmp_path / "runs"], tmp_path / "out", ["json"])
    folder = tmp_path / "out" / "contradiction"
    shown = {name: np.load(folder / f"{name}.npy") for name in ("image", "adversarial", "perturbation")}
    assert np.array_equal(shown["adversarial"], pixels)
    assert np.array_equal(shown["perturbation"], pixels.astype(float) - shown["image"])
    assert 0 < np.abs(shown["perturbation"]).max() <= 32 / 255
    commands = (folder / "reproduce.sh").read_text().splitlines()[1:]
    assert commands[0].startswith("hydrabench certify --ckpt digits-trades-95 --method ibp")
    assert commands[1].endswith(f"--steps 4 -n {index + 1} --keep adversarial")


def test_a_report_shows_images_adversarial_images_and_perturbations(runs, tmp_path):
    for name in ("pgd", "l2"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    write_report([tmp_path / "runs"], tmp_path / "out", ["html"])
    table = pd.read_csv(tmp_path / "out" / "figures" / "adversarial.csv")
    assert set(table["network"]) == {"digits-trades-95"}
    assert (table["label"] != table["class"]).all()
    assert len(table) == 8
    assert table["linf"].between(1e-3, 32 / 255 + 1e-9).all() or table["l2"].between(1e-3, 0.8).all()
    assert {path.suffix for path in (tmp_path / "out" / "figures").glob("adversarial.*")} == {".csv", ".png", ".pdf"}
    assert "Adversarial images" in (tmp_path / "out" / "index.html").read_text()


def test_of_runs_whose_images_are_not_at_hand_none_are_shown(runs, tmp_path, monkeypatch):
    def gone(*_arguments):
        raise DataError("no such data set here")

    monkeypatch.setattr("hydrabench.data.load_images", gone)
    shutil.copytree(runs / "pgd", tmp_path / "runs" / "pgd")
    write_report([tmp_path / "runs"], tmp_path / "out", ["html"])
    assert not list((tmp_path / "out" / "figures").glob("adversarial.*"))
