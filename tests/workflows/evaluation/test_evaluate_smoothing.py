"""Smoothing in a run folder: the same record alone and among others, noise on record, radii in the summary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hydrabench.errors import (
    ConfigError,
    DataError,
    LedgerError,
)
from hydrabench.evaluators import (
    AutoAttackSettings,
    SmoothingSettings,
)
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.running_totals import RunningTotals
from tests.helpers.evaluations import PGD, SMOOTHING, interrupt, numbers, read


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
    several = RunningTotals(SmoothingSettings(samples=250, radii=(0.0, 0.05, 0.5)), [record])
    assert str(several) == "certified@0 100.0% [2.5, 100.0], @0.05 100.0%, @0.5 0.0%"
    full = RunningTotals(SmoothingSettings(samples=250, radii=(0.0,)), [record])
    assert str(full) == "certified@0 100.0% [2.5, 100.0]"  # all draws were made: nothing to say
