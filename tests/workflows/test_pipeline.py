"""The whole line: one recipe from training to a leaderboard, and on again from wherever it was stopped."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from torch import nn

from hydrabench.bounds.program.convert import LAYERS
from hydrabench.checkpoints import load_checkpoint
from hydrabench.errors import ConfigError, DataError, LedgerError, UnsupportedLayerError
from hydrabench.evaluators import EVALUATORS
from hydrabench.evaluators.description import Ready
from hydrabench.files import sha256_of
from hydrabench.objectives import OBJECTIVES
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.run_options import RunOptions

RUNS = ("train", "prune-0.1", "finetune-0.1", "lwm-0.1")
EVALUATED = ("train", "finetune-0.1", "lwm-0.1")
PROTOCOLS = ("pgd-3-v2-8_255", "crown-ibp-v1-1_255")


@pytest.fixture(scope="module")
def done(make_recipe, cpu, tmp_path_factory):
    """A finished pipeline of the tiny recipe, and its leaderboard."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    return out, run_pipeline(make_recipe(), out, options=cpu)


REPORT = {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "summary.json", "index.html", "figures"}


def contents(folder) -> dict[str, str]:
    """All files of runs that hold no times: their hashes, and of summaries what does not depend on times."""
    found = {}
    for path in folder.rglob("*"):
        if (folder / "report") in path.parents:
            continue
        if path.name == "summary.json":
            found[path.relative_to(folder).as_posix()] = re.sub(
                r'"records_sha256": "\w+"|"peak_memory": \d+', "", path.read_text()
            )
        elif path.is_file() and path.name not in ("run.json", "records.jsonl", "metrics.csv"):
            found[path.relative_to(folder).as_posix()] = sha256_of(path)
    return found


def test_a_pipeline_trains_prunes_finetunes_evaluates_and_reports(done):
    out, _ = done
    assert {path.name for path in out.iterdir()} == {*RUNS, "evaluations", "report"}
    assert all(load_checkpoint(out / name / "checkpoint.safetensors") for name in RUNS)
    ledgers = {path.parent.relative_to(out / "evaluations").as_posix() for path in out.rglob("records.jsonl")}
    assert ledgers == {f"{name}/{protocol}" for name in EVALUATED for protocol in PROTOCOLS}
    runs = [json.loads(path.read_text()) for path in out.rglob("run.json")]
    assert len(runs) == 4 + 6
    assert all(run["status"] == "complete" for run in runs)
    assert {path.name for path in (out / "report").iterdir()} == REPORT


def test_every_checkpoint_descends_from_the_one_before_it(done):
    out, _ = done
    parents = {name: load_checkpoint(out / name / "checkpoint.safetensors") for name in RUNS}
    assert [parents[name].header.parent for name in RUNS] == [
        None,
        parents["train"].sha256,
        parents["prune-0.1"].sha256,
        parents["train"].sha256,
    ]
    assert [parents[name].header.density for name in RUNS] == [1, 0.1, 0.1, 0.1]


def test_the_leaderboard_has_a_row_per_checkpoint_with_the_numbers_of_its_ledgers(done):
    out, board = done
    assert {row.label for row in board.rows} == {f"tiny/{name}" for name in EVALUATED}
    for row in board.rows:
        for column, cell in row.cells.items():
            if column.kind == "pgd" and column.metric == "robust_accuracy":
                folder = out / "evaluations" / row.label.removeprefix("tiny/") / PROTOCOLS[0]
                records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
                assert (cell.count, cell.n) == (sum(record["robust"] for record in records), 120)
                break
        else:
            pytest.fail(f"no robust accuracy for {row.label}")
    text = (out / "report" / "leaderboard.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert all(f"tiny/{name}" in text for name in EVALUATED)
    assert len(rows) >= 3


def test_the_report_names_the_pruned_network_that_one_was_finetuned_from(done):
    out, _ = done
    lines = (out / "report" / "leaderboard.md").read_text().splitlines()
    finetuned = next(line for line in lines if line.startswith("| tiny/finetune-0.1 | "))
    assert "| prune-0.1 |" in finetuned


def test_without_resume_a_folder_in_use_is_refused(done, make_recipe, cpu):
    out, _ = done
    before = contents(out)
    with pytest.raises(LedgerError, match=r"run already holds files; continue with --resume or choose a new --out"):
        run_pipeline(make_recipe(), out, options=cpu)
    assert contents(out) == before


def test_with_resume_a_finished_pipeline_does_nothing_again(done, make_recipe, cpu, monkeypatch):
    out, board = done
    runs = [path for path in out.rglob("*") if path.is_file() and "report" not in path.parts]
    before = {path: (sha256_of(path), path.stat().st_mtime_ns) for path in runs}
    report = contents(out / "report")
    for name in OBJECTIVES:
        monkeypatch.setitem(OBJECTIVES, name, replace(OBJECTIVES[name], loss=None))
    for kind in EVALUATORS:
        # whoever trains or evaluates now would fail
        monkeypatch.setitem(EVALUATORS, kind, replace(EVALUATORS[kind], evaluate=None, prepare=lambda *_: Ready(None)))
    again = run_pipeline(make_recipe(), out, options=cpu, resume=True)
    assert {path: (sha256_of(path), path.stat().st_mtime_ns) for path in runs} == before
    assert contents(out / "report") == report
    assert [row.label for row in again.rows] == [row.label for row in board.rows]


def stop_before(block, evaluator):
    """`evaluator`, but the `block`-th block is interrupted."""
    calls = []

    def prepare(*arguments):
        ready = evaluator.ready(*arguments)

        def stopping(images):
            calls.append(1)
            if len(calls) == block:
                raise KeyboardInterrupt
            return ready.evaluate(images)

        return replace(ready, evaluate=stopping)

    return replace(evaluator, prepare=prepare)


def stop_at(call, function):
    """`function`, but the `call`-th call is interrupted."""
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopping


def test_an_interrupted_pipeline_goes_on_to_the_same_leaderboard(done, make_recipe, cpu, tmp_path, monkeypatch):
    """Stopped while pruning (15 training steps, then 10), and again in the last ledger but one (6 of 2 blocks each)."""
    out, _ = done
    cut = tmp_path / "run"
    objective = OBJECTIVES["trades"]
    with monkeypatch.context() as patch:
        patch.setitem(OBJECTIVES, "trades", replace(objective, loss=stop_at(15 + 8, objective.loss)))
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(make_recipe(), cut, options=cpu)
    assert {path.name for path in cut.iterdir()} == {"train", "prune-0.1"}
    with monkeypatch.context() as patch:
        patch.setitem(EVALUATORS, "pgd", stop_before(6, EVALUATORS["pgd"]))
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(make_recipe(), cut, options=cpu, resume=True)
    assert not (cut / "report").exists()
    records = cut / "evaluations" / "lwm-0.1" / PROTOCOLS[0] / "records.jsonl"
    assert len(records.read_text().splitlines()) == 100
    run_pipeline(make_recipe(), cut, options=cpu, resume=True)
    assert contents(cut) == contents(out)
    tables = [pd.read_csv(folder / "report/leaderboard.csv") for folder in (cut, out)]
    pd.testing.assert_frame_equal(*(table.drop(columns=["seconds", "peak_memory"]) for table in tables))


def test_what_a_training_computes_with_its_certificates_are_computed_with_too(make_recipe, cpu, tmp_path):
    """Where the evaluator knows it: smoothing has --channels-last, PGD has not. The protocol is the same."""
    smoothing = {"kind": "smoothing", "sigma": 0.1, "samples": 100, "radii": [0, 0.1]}
    short = {"epochs": 1, "epsilon_ramp_epochs": 1}
    recipe = make_recipe(train=short, evaluate=[smoothing, {"kind": "pgd", "steps": 1}], pipeline={"densities": []})
    run_pipeline(recipe, tmp_path / "run", options=replace(cpu, channels_last=True))
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "run/evaluations/train").glob("*/run.json"))]
    assert [(run["settings"]["kind"], run.get("channels_last")) for run in runs] == [("pgd", None), ("smoothing", True)]


def test_a_pipeline_is_not_continued_with_another_recipe(done, make_recipe, cpu):
    out, _ = done
    before = contents(out)
    with pytest.raises(LedgerError, match=r"cannot resume .*train: recipe\.train\.lr was 0\.01 and is now 0\.02"):
        run_pipeline(make_recipe(train={"lr": 0.02}), out, options=cpu, resume=True)
    assert contents(out) == before


def test_another_density_joins_a_finished_pipeline_without_training_the_rest_again(done, make_recipe, cpu, tmp_path):
    out, _ = done
    shutil.copytree(out, tmp_path / "run")
    recipe = make_recipe(pipeline={"densities": [0.1, 0.05], "lwm": False})
    board = run_pipeline(recipe, tmp_path / "run", options=cpu, resume=True)
    assert {row.label for row in board.rows} == {f"tiny/{name}" for name in (*EVALUATED, "finetune-0.05")}
    for name in RUNS:
        checkpoint = f"{name}/checkpoint.safetensors"
        assert (tmp_path / "run" / checkpoint).stat().st_mtime_ns == (out / checkpoint).stat().st_mtime_ns


def test_a_sub_network_is_chosen_under_another_objective_and_evaluated_as_it_is(make_recipe, cpu, tmp_path):
    """Ordinary training, then half of the weights under TRADES, and no fine-tuning: HYDRA's sub-network recipe."""
    natural = {"objective": {"name": "natural"}, "epsilon_ramp_epochs": 1}
    recipe = make_recipe(train=natural, finetune=None, pipeline={"densities": [0.5], "lwm": False})
    board = run_pipeline(recipe, tmp_path / "run", options=cpu)
    assert {row.label for row in board.rows} == {"tiny/train", "tiny/prune-0.5"}
    trained, pruned = (
        load_checkpoint(tmp_path / "run" / name / "checkpoint.safetensors") for name in ("train", "prune-0.5")
    )
    assert (trained.header.objective["name"], pruned.header.objective["name"]) == ("natural", "trades")
    assert trained.header.selection.metric == "clean_accuracy"
    assert pruned.header.selection.metric == "robust_accuracy"
    before, after = trained.baked().state_dict(), pruned.baked().state_dict()
    weight = next(key for key in before if key.endswith("weight") and before[key].ndim == 4)
    kept = after[weight] != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert (after[weight][kept] == before[weight][kept]).all(), "weights are chosen, not trained"


CIFAR_VGG = {"model": {"arch": "vgg16_bn"}, "data": {"name": "cifar10"}}
UNDER_BOUNDS = {**CIFAR_VGG, "evaluate": [{"kind": "clean"}], "prune": {"objective": {"name": "ibp", "epsilon": 0}}}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prune": None}, ConfigError, r"recipe tiny needs a `prune:` section"),
        ({"evaluate": []}, ConfigError, r"recipe tiny has no `evaluate:` entries; a pipeline ends in a leaderboard"),
        ({"evaluate_images": 501}, DataError, r"-n 501 is outside 1\.\.500, the test images of digits"),
        ({"model": {"arch": "vgg16_bn"}}, ConfigError, r"images of 8x8 pixels are too small for 4 poolings"),
        (
            {"data": {"name": "cifar10"}},
            DataError,
            r"no CIFAR-10 in .*--data-dir or HYDRABENCH_DATA, or add --download",
        ),
        (CIFAR_VGG, UnsupportedLayerError, r"cannot bound features\.\d+ \(MaxPool2d\)"),
        (UNDER_BOUNDS, UnsupportedLayerError, r"cannot bound features\.\d+ \(MaxPool2d\)"),
    ],
)
def test_what_would_stop_it_hours_later_is_refused_before_anything_is_written(
    make_recipe, tmp_path, monkeypatch, changes, error, message
):
    monkeypatch.delitem(LAYERS, nn.MaxPool2d)  # every architecture has rules for all its layers
    (tmp_path / "data").mkdir()
    with pytest.raises(error, match=message):
        run_pipeline(make_recipe(**changes), tmp_path / "run", options=RunOptions("cpu", tmp_path / "data"))
    assert not (tmp_path / "run").exists()
