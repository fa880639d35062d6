"""attack and certify on the real digits: what the ledgers hold, what is refused, and how they go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets

from hydrabench.checkpoints import compact_size, export_checkpoint
from hydrabench.errors import (
    ConfigError,
    DataError,
    LedgerError,
    MemoryShortageError,
)
from hydrabench.evaluators import (
    EVALUATORS,
    AlphaCrownSettings,
    AutoAttackSettings,
    CleanSettings,
    ExactSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.files import sha256_of
from hydrabench.ledger import (
    AttackRecord,
    CurveRecord,
    ExactRecord,
    SmoothAttackRecord,
    SmoothedRecord,
    VerifiedRecord,
)
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.running_totals import RunningTotals

PGD = PgdSettings(epsilon="8/255", steps=3)
CROWN = VerifiedSettings(kind="crown-ibp", epsilon="1/255")
SMOOTHING = SmoothingSettings(sigma=0.1, n0=10, samples=60, radii=(0.0, 0.05, 9.0))


def of_kind(kind, **values):
    return EVALUATORS[kind].settings.model_validate({"kind": kind, "epsilon": "8/255"} | values)


# kind -> (settings, images, record class, the field of the verdict)
CASES = {
    "clean": (CleanSettings(), 230, AttackRecord, "robust"),
    "pgd": (PGD, 230, AttackRecord, "robust"),
    "autoattack": (AutoAttackSettings(epsilon="128/255"), 2, AttackRecord, "robust"),
    "ibp": (VerifiedSettings(kind="ibp", epsilon="1/255"), 230, VerifiedRecord, "verified"),
    "crown-ibp": (CROWN, 230, VerifiedRecord, "verified"),
    "symbolic": (VerifiedSettings(kind="symbolic", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "crown": (VerifiedSettings(kind="crown", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "cascade": (VerifiedSettings(kind="cascade", epsilon="1/255"), 110, VerifiedRecord, "verified"),
    "smoothing": (SMOOTHING, 6, SmoothedRecord, "radius"),
    "alpha-crown": (AlphaCrownSettings(epsilon="1/255", iterations=3), 12, VerifiedRecord, "verified"),
    "exact": (ExactSettings(epsilon="1/255", max_subproblems=20), 12, ExactRecord, "verified"),
    "apgd": (of_kind("apgd"), 3, AttackRecord, "robust"),
    "fab": (of_kind("fab"), 2, AttackRecord, "robust"),
    "square": (of_kind("square", queries=20), 3, AttackRecord, "robust"),
    "hydra": (of_kind("hydra"), 12, AttackRecord, "robust"),
    "fmn": (of_kind("fmn"), 12, CurveRecord, "robust"),
    "smoothed": (
        of_kind("smoothed", epsilon="0.25", sigma=0.1, steps=2, draws=50, alpha=0.01),
        4, SmoothAttackRecord, "robust",
    ),
}  # fmt: skip
IMAGES_OF_THEIR_OWN = {"corruptions"}  # a library that need not be there makes them; see its own tests


@pytest.fixture(scope="module")
def subject(line, cpu):
    return open_subject(str(line.train), options=cpu)


@pytest.fixture(scope="module")
def runs(subject, cpu, tmp_path_factory):
    """One finished run of every kind, uninterrupted."""
    root = tmp_path_factory.mktemp("evaluations")
    for kind, (settings, n, _, _) in CASES.items():
        evaluate(subject, settings, root / kind, options=cpu, n=n)
    return root


def read(folder, name="run.json"):
    return json.loads((folder / name).read_text())


def numbers(summary):
    """A summary without the hash of its ledger, in which there are times."""
    return {key: value for key, value in summary.items() if key != "records_sha256"}


def test_every_kind_of_evaluation_is_tested():
    assert set(CASES) | IMAGES_OF_THEIR_OWN == set(EVALUATORS)


@pytest.mark.parametrize("kind", CASES)
def test_a_ledger_has_one_record_per_image_about_the_very_pixels_of_the_data_set(runs, comparable, kind):
    _, n, record, verdict = CASES[kind]
    records = comparable(runs / kind)
    assert [entry["index"] for entry in records] == list(range(n))
    assert all(set(entry) == {field.name for field in fields(record)} - {"seconds"} for entry in records)
    raw = sklearn_datasets.load_digits()
    grey = np.round(raw.images[1297 : 1297 + n] * 255 / 16).astype(np.float32) / np.float32(255)
    assert [entry["input_sha"] for entry in records] == [hashlib.sha256(image.tobytes()).hexdigest() for image in grey]
    assert [entry["label"] for entry in records] == raw.target[1297 : 1297 + n].tolist()
    if n > 100:
        assert 0 < sum(entry[verdict] for entry in records) < n  # some hold, some do not


@pytest.mark.parametrize("kind", ["clean", "pgd", "ibp", "crown-ibp"])
def test_the_summary_is_the_fraction_of_records_that_hold(runs, comparable, kind):
    _, n, _, verdict = CASES[kind]
    records, summary = comparable(runs / kind), read(runs / kind, "summary.json")
    metric = {"clean": "clean_accuracy", "pgd": "robust_accuracy"}.get(kind, "verified_accuracy")
    count = sum(entry[verdict] for entry in records)
    found = summary["metrics"][metric]
    assert (summary["n"], found["count"], found["value"]) == (n, count, count / n)
    right = sum(entry["prediction"] == entry["label"] for entry in records)
    assert summary["metrics"]["clean_accuracy"]["value"] == right / n
    assert found["low"] < found["value"] < found["high"]


def test_the_summary_of_smoothing_counts_right_predictions_certified_at_each_radius(runs, comparable):
    records, metrics = comparable(runs / "smoothing"), read(runs / "smoothing", "summary.json")["metrics"]
    right = [entry for entry in records if entry["prediction"] == entry["label"]]
    assert right
    for radius, name in ((0.0, "0"), (0.05, "0.05"), (9.0, "9")):
        certified = sum(entry["radius"] >= radius for entry in right)
        assert metrics[f"certified_accuracy@{name}"]["count"] == certified
    assert metrics["certified_accuracy@9"]["count"] == 0
    assert metrics["average_certified_radius"]["value"] == pytest.approx(sum(e["radius"] for e in right) / 6)


@pytest.mark.parametrize("kind", CASES)
def test_run_json_says_how_the_number_was_made(runs, line, comparable, kind):
    settings, n, _, _ = CASES[kind]
    run = read(runs / kind)
    assert (run["schema"], run["status"], run["world_size"]) == ("hydrabench.run/2", "complete", 1)
    assert run["command"] == ("certify" if EVALUATORS[kind].claims in ("lower", "smoothed") else "attack")
    assert (run["protocol"], run["settings"]) == (settings.protocol, settings.plain())
    lines = [f"{entry['input_sha']} {entry['label']}\n" for entry in comparable(runs / kind)]
    known = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert run["dataset"] == {"name": "digits", "split": "test", "n": n, "fingerprint": known}
    (made_with,) = run["environments"]
    assert (made_with["first_record"], made_with["torch"]) == (0, torch.__version__.split("+")[0])
    checkpoint = run["checkpoint"]
    assert checkpoint["sha256"] == sha256_of(line.train / "checkpoint.safetensors")
    assert (checkpoint["arch"], checkpoint["density"], checkpoint["phase"]) == ("cifar_model_bn", 1, "train")
    assert run["started"] <= run["ended"]
    assert run.get("noise") == ("cpu" if kind == "smoothing" else None)


def test_no_image_is_both_verified_and_broken_at_the_same_radius(runs, subject, cpu, comparable, tmp_path):
    evaluate(subject, PgdSettings(epsilon="1/255", steps=10), tmp_path / "pgd", options=cpu, n=230)
    verified = [entry["verified"] for entry in comparable(runs / "crown-ibp")]
    robust = [entry["robust"] for entry in comparable(tmp_path / "pgd")]
    assert any(verified)
    assert not all(robust)
    assert not any(holds and not survives for holds, survives in zip(verified, robust, strict=True))


def test_fewer_images_give_the_first_records_of_more(runs, subject, cpu, comparable, tmp_path):
    for kind, n in (("pgd", 100), ("smoothing", 2)):
        evaluate(subject, CASES[kind][0], tmp_path / kind, options=cpu, n=n)
        assert comparable(tmp_path / kind) == comparable(runs / kind)[:n]


def test_a_pruned_network_is_evaluated_with_its_masks_baked_in(line, cpu, comparable, tmp_path):
    """26 + 820 + 1280 + 100 weights, 16 + 32 + 100 + 10 biases, 2 · (16 + 32) of batch norm."""
    subject = open_subject(str(line.prune), options=cpu)
    evaluate(subject, CleanSettings(), tmp_path / "run", options=cpu, n=5)
    described = read(tmp_path / "run")["checkpoint"]
    assert described["parameters"] == 22248 + 158 + 96
    assert 2226 + 96 < described["nonzero_parameters"] <= 2226 + 158 + 96
    assert described["prunable_layers"] == 4


def test_run_json_says_where_a_network_comes_from_and_how_small_it_can_be_kept(runs, cpu, tmp_path):
    """A compact file of 5 % of 22,248 weights: 4 bytes of each kept one, and less than a byte to say where it is."""
    subject = open_subject("digits-trades-95", options=cpu)
    evaluate(subject, CleanSettings(), tmp_path / "run", options=cpu, n=5)
    run = read(tmp_path / "run")
    header = subject.checkpoint.header
    assert run["origin"] == {
        "recipe": "digits-trades",
        "seed": 0,
        "selection": "validation",
        "parent": header.parent,
        "additional_data": False,
        "compact_bytes": compact_size(subject.network),
    }
    path = tmp_path / "compact.safetensors"
    export_checkpoint(subject.checkpoint, path, "compact")
    assert run["origin"]["compact_bytes"] < path.stat().st_size < run["checkpoint"]["bytes"] / 8
    assert run["peak_memory"] > 1e7
    unpruned = read(runs / "clean")["origin"]
    assert "compact_bytes" not in unpruned
    assert unpruned["additional_data"] is False  # as the recipe of its training run says


def test_float64_is_recorded_and_computed(runs, line, cpu, comparable, tmp_path):
    subject = open_subject(str(line.train), options=cpu, precision="float64")
    evaluate(subject, CROWN, tmp_path / "run", options=cpu, n=50)
    assert read(tmp_path / "run")["precision"] == "float64"
    exact, rounded = comparable(tmp_path / "run"), comparable(runs / "crown-ibp")[:50]
    assert [e["input_sha"] for e in exact] == [e["input_sha"] for e in rounded]
    differences = [abs(a["lower"] - b["lower"]) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 1e-3


# Settings ---------------------------------------------------------------------------------------


# Going on after an interruption ----------------------------------------------------------------


def interrupt(monkeypatch, kind, call, error=KeyboardInterrupt):
    """Press Ctrl-C, or raise another error, at the `call`-th block from now."""
    original, calls = EVALUATORS[kind], []

    def prepare(*arguments):
        ready = original.ready(*arguments)

        def evaluator(block):
            calls.append(1)
            if len(calls) == call:
                raise error
            return ready.evaluate(block)

        return replace(ready, evaluate=evaluator)

    monkeypatch.setitem(EVALUATORS, kind, replace(original, prepare=prepare))


@pytest.mark.parametrize(("kind", "block"), [("pgd", 100), ("crown-ibp", 100), ("smoothing", 1)])
def test_an_interrupted_evaluation_goes_on_to_the_same_records(
    runs, subject, cpu, comparable, tmp_path, monkeypatch, kind, block
):
    """Interrupted in the first block, then in the third, with the torn line that a crash may leave."""
    settings, n, _, _ = CASES[kind]
    for call, kept in ((1, 0), (3, 2 * block)):
        with monkeypatch.context() as patch:
            interrupt(patch, kind, call)
            with pytest.raises(KeyboardInterrupt):
                evaluate(subject, settings, tmp_path / "run", options=cpu, n=n, resume=True)
        ledger = tmp_path / "run" / "records.jsonl"
        assert (len(comparable(tmp_path / "run")) if ledger.exists() else 0) == kept
    assert (read(tmp_path / "run")["status"], (tmp_path / "run" / "summary.json").exists()) == ("running", False)
    with ledger.open("ab") as file:
        file.write(b'{"index": 200, "input_sha": "b5')
    summary = evaluate(subject, settings, tmp_path / "run", options=cpu, n=n, resume=True)
    assert comparable(tmp_path / "run") == comparable(runs / kind)
    assert summary == read(tmp_path / "run", "summary.json")
    assert numbers(summary) == numbers(read(runs / kind, "summary.json"))


@pytest.mark.parametrize(
    "case",
    [
        ("pgd", torch.OutOfMemoryError("CUDA out of memory."), ""),
        ("crown-ibp", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ", or choose ibp"),
    ],
)
def test_too_little_memory_is_named_with_its_images_and_loses_nothing(
    runs, subject, cpu, comparable, tmp_path, monkeypatch, case
):
    kind, error, instead = case
    settings, n, _, _ = CASES[kind]
    with monkeypatch.context() as patch:
        interrupt(patch, kind, 3, error)
        expected = (
            f"out of memory on cpu at images 200 to 229; what came before is kept; --resume on .*memory{instead}$"
        )
        with pytest.raises(MemoryShortageError, match=expected):
            evaluate(subject, settings, tmp_path / "run", options=cpu, n=n)
    assert len(comparable(tmp_path / "run")) == 200
    evaluate(subject, settings, tmp_path / "run", options=cpu, n=n, resume=True)
    assert comparable(tmp_path / "run") == comparable(runs / kind)


def test_a_bug_in_an_evaluator_is_no_shortage_of_memory(subject, cpu, tmp_path, monkeypatch):
    interrupt(monkeypatch, "pgd", 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        evaluate(subject, PGD, tmp_path / "run", options=cpu, n=10)


def test_resuming_a_complete_evaluation_does_nothing_again(runs, subject, cpu, monkeypatch):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (runs / "pgd").iterdir()}
    interrupt(monkeypatch, "pgd", 1)
    summary = evaluate(subject, PGD, runs / "pgd", options=cpu, n=230, resume=True)
    assert summary == read(runs / "pgd", "summary.json")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (runs / "pgd").iterdir()} == before


def test_a_folder_in_use_is_not_overwritten(runs, subject, cpu):
    with pytest.raises(LedgerError, match=r"pgd already holds a run; continue it with --resume or choose a new --out"):
        evaluate(subject, PGD, runs / "pgd", options=cpu, n=230)


@pytest.mark.parametrize(
    ("settings", "n", "named"),
    [
        (PgdSettings(epsilon="4/255", steps=3), 230, r'settings\.epsilon was "8/255" and is now "4/255"'),
        (PGD, 229, r"dataset\.n was 230 and is now 229"),
    ],
)
def test_an_evaluation_is_not_continued_with_other_settings(runs, subject, cpu, settings, n, named):
    with pytest.raises(LedgerError, match=rf"cannot resume .*{named}.*; keep the values"):
        evaluate(subject, settings, runs / "pgd", options=cpu, n=n, resume=True)


def test_an_evaluation_is_not_continued_with_another_checkpoint_or_precision(runs, line, cpu):
    other = open_subject(str(line.lwm), options=cpu)
    with pytest.raises(LedgerError, match=r"checkpoint\.sha256 was"):
        evaluate(other, PGD, runs / "pgd", options=cpu, n=230, resume=True)
    other = open_subject(str(line.train), options=cpu, precision="float64")
    with pytest.raises(LedgerError, match=r'precision was "float32" and is now "float64"'):
        evaluate(other, PGD, runs / "pgd", options=cpu, n=230, resume=True)


# Smoothing -------------------------------------------------------------------------------------


def drawing(options, **smoothing):
    """The run options with other options of smoothing."""
    return replace(options, computing=smoothing)


ADAPTIVE = SmoothingSettings(sigma=0.1, n0=10, samples=900, mode="adaptive", radii=(0.0, 0.1, 0.2))


@pytest.mark.parametrize("settings", [SMOOTHING, ADAPTIVE], ids=["cohen", "adaptive"])
def test_one_image_alone_gets_the_record_it_has_among_others(subject, cpu, comparable, tmp_path, settings):
    """Blocks are cut anew, and draws packed with those of other images."""
    evaluate(subject, settings, tmp_path / "all", options=cpu, n=40)
    evaluate(subject, settings, tmp_path / "some", options=drawing(cpu, batch=37), indices=[35, 17, 3, 17])
    whole = comparable(tmp_path / "all")
    assert comparable(tmp_path / "some") == [whole[3], whole[17], whole[35]]
    dataset = read(tmp_path / "some")["dataset"]
    assert (dataset["n"], dataset["indices"]) == (3, [3, 17, 35])
    evaluate(subject, settings, tmp_path / "one", options=cpu, indices=[17])
    assert comparable(tmp_path / "one") == [whole[17]]


def test_explicit_images_are_checked(subject, cpu, tmp_path):
    for indices, n, settings, message in (
        ([3, 500], None, PGD, r"--index 500 is outside 0\.\.499, the test images of digits"),
        ([3], 5, PGD, r"--index names the images one by one; leave -n, --skip and --ids out"),
        ([3], None, AutoAttackSettings(epsilon="1/255", version=1), r"aa-standard@1 judges whole blocks"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            evaluate(subject, settings, tmp_path / "run", options=cpu, n=n, indices=indices)
    assert not (tmp_path / "run").exists()


def test_an_adaptive_run_that_was_interrupted_goes_on_to_the_same_records(
    subject, cpu, comparable, tmp_path, monkeypatch
):
    evaluate(subject, ADAPTIVE, tmp_path / "whole", options=cpu, n=80)
    with monkeypatch.context() as patch:
        interrupt(patch, "smoothing", 3)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, ADAPTIVE, tmp_path / "cut", options=cpu, n=80)
    assert len(comparable(tmp_path / "cut")) == 64
    summary = evaluate(subject, ADAPTIVE, tmp_path / "cut", options=drawing(cpu, batch=50), n=80, resume=True)
    assert comparable(tmp_path / "cut") == comparable(tmp_path / "whole")
    assert numbers(summary) == numbers(read(tmp_path / "whole", "summary.json"))


def test_noise_and_arithmetic_are_recorded_and_not_changed_on_the_way(line, cpu, tmp_path):
    reduced = open_subject(str(line.train), options=cpu, precision="bfloat16")
    options = drawing(cpu, fold_batch_norm=True, channels_last=True)
    evaluate(reduced, ADAPTIVE, tmp_path / "run", options=options, n=5)
    run = read(tmp_path / "run")
    assert (run["precision"], run["noise"], run["fold_batch_norm"], run["channels_last"]) == (
        "bfloat16", "cpu", True, True,
    )  # fmt: skip
    with pytest.raises(LedgerError, match=r"cannot resume .*channels_last was true and is now null"):
        evaluate(reduced, ADAPTIVE, tmp_path / "run", options=drawing(cpu, fold_batch_norm=True), n=5, resume=True)
    with pytest.raises(ConfigError, match=r"--precision bfloat16 is for smoothing only, .* float32, float64"):
        evaluate(reduced, PGD, tmp_path / "other", options=cpu, n=5)


def test_the_summary_names_the_linf_radii_that_l2_radii_imply(runs):
    """8 x 8 pixels: 0.05 / 8."""
    assert read(runs / "smoothing", "summary.json")["implied_linf"] == {"0": 0.0, "0.05": 0.05 / 8, "9": 9 / 8}


def test_progress_shows_certified_accuracy_with_its_interval_and_what_was_saved():
    """3 of 4 at radius 0: Clopper-Pearson 19.4 to 99.4 percent; 1,000 of 4 * 1000 draws."""
    settings = SmoothingSettings(samples=1000, radii=(0.0,), mode="adaptive")
    record = {"label": 1, "prediction": 1, "radius": 0.1, "abstain": False, "samples": 250}
    tally = RunningTotals(settings, [record] * 2)
    tally.add([record, {**record, "prediction": -1, "abstain": True}])
    assert str(tally) == "certified@0 75.0% [19.4, 99.4], 1,000 draws, 75.0% saved"
    assert str(RunningTotals(settings)) == ""
    full = RunningTotals(SmoothingSettings(samples=250, radii=(0.0,)), [record])
    assert str(full) == "certified@0 100.0% [2.5, 100.0]"  # all draws were made: nothing to say


def test_slow_bounds_tell_the_layer_while_an_image_is_bounded(subject, cpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("hydrabench.workflows.progress.LOG_SECONDS", 0.0)
    monkeypatch.setattr("hydrabench.evaluators.blocks.MINUTE", 0.0)  # then every image takes too long
    monkeypatch.setattr("hydrabench.evaluators.blocks.BLOCK_OPERATIONS", 1.0)
    settings = VerifiedSettings(kind="cascade", methods=("ibp", "symbolic", "crown"), epsilon="8/255")
    evaluate(subject, settings, tmp_path / "run", options=cpu, n=2)
    lines = capsys.readouterr().err.splitlines()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["block_size"] == 1
    assert lines[0].startswith("cascade may take up to")
    for part in ("symbolic · image 0", "symbolic · image 1", "crown · "):
        assert any(f"layer 2/3 100% · {part}" in line for line in lines), (part, lines)
    assert ": 0/2, " in lines[1]
    assert "s left" not in lines[1]
