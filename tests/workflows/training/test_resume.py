"""Phases that are interrupted go on to the same bytes; with another recipe, parent or state they are refused."""

from __future__ import annotations

import json

import pytest

from hydrabench.errors import (
    LedgerError,
)
from hydrabench.ledger import RunFolder
from hydrabench.workflows.training import commands as training
from tests.helpers.interrupting import interrupt_loss
from tests.helpers.phases import STEPS, sha, table


def run_phase(phase, recipe, line, out, cpu, *, resume=False):
    if phase == "train":
        training.train(recipe, out, options=cpu, resume=resume)
    elif phase == "prune":
        training.prune(recipe, str(line.train), out, options=cpu, resume=resume)
    else:
        source = line.train if phase == "lwm" else line.prune
        training.finetune(recipe, str(source), out, options=cpu, lwm=phase == "lwm", resume=resume)


def assert_same_runs(folder, other):
    assert (folder / "checkpoint.safetensors").read_bytes() == (other / "checkpoint.safetensors").read_bytes()
    assert table(folder, without=("seconds",)) == table(other, without=("seconds",))
    assert (folder / "summary.json").read_bytes() == (other / "summary.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_an_interrupted_phase_goes_on_to_the_same_bytes(
    line, make_recipe, cpu, tmp_path, monkeypatch, phase, optimizer
):
    """Interrupted in the middle of the second of three epochs."""
    changes = {"epochs": 3, "optimizer": optimizer, "lr": 0.01}
    recipe = make_recipe(**{phase: changes | ({"density": 0.1} if phase == "prune" else {})})
    run_phase(phase, recipe, line, tmp_path / "whole", cpu)
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 3)
        with pytest.raises(KeyboardInterrupt):
            run_phase(phase, recipe, line, tmp_path / "cut", cpu)
    assert [row["epoch"] for row in table(tmp_path / "cut")] == ["1"]
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    run_phase(phase, recipe, line, tmp_path / "cut", cpu, resume=True)
    assert_same_runs(tmp_path / "cut", tmp_path / "whole")


def test_a_phase_may_be_interrupted_again_and_again_wherever_it_is(line, make_recipe, cpu, tmp_path, monkeypatch):
    """LWM, stopped before any state was saved, in its last epoch, and between its checkpoint and its end."""
    recipe, cut = make_recipe(finetune={"density": 0.1}), tmp_path / "cut"

    def stop(run, summary):
        raise KeyboardInterrupt

    for call, left in ((2, {"run.json"}), (STEPS + 3, {"run.json", "metrics.csv", "resume.pt"})):
        with monkeypatch.context() as patch:
            interrupt_loss(patch, call=call)
            with pytest.raises(KeyboardInterrupt):
                run_phase("lwm", recipe, line, cut, cpu, resume=True)
        assert {path.name for path in cut.iterdir()} == left
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run_phase("lwm", recipe, line, cut, cpu, resume=True)
    assert json.loads((cut / "run.json").read_text())["status"] == "running"
    run_phase("lwm", recipe, line, cut, cpu, resume=True)
    assert_same_runs(cut, line.lwm)


def test_resuming_a_complete_run_does_nothing_again(line, make_recipe, cpu, monkeypatch):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in line.train.iterdir()}
    interrupt_loss(monkeypatch, call=1)  # the first step would fail
    summary = training.train(make_recipe(), line.train, options=cpu, resume=True)
    assert summary == json.loads((line.train / "summary.json").read_text())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in line.train.iterdir()} == before


def test_a_run_in_use_is_not_overwritten(line, make_recipe, cpu):
    before = sha(line.train)
    with pytest.raises(LedgerError, match=r"train already holds a run; continue it with --resume or choose a new"):
        training.train(make_recipe(), line.train, options=cpu)
    assert sha(line.train) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": {"lr": 0.02}}, r"recipe\.train\.lr was 0\.01 and is now 0\.02"),
        ({"seed": 3}, r"recipe\.seed was 0 and is now 3"),
        ({"data": {"flip": True}}, r"recipe\.data\.flip was false and is now true"),
    ],
)
def test_a_run_is_not_continued_with_another_recipe(line, make_recipe, cpu, changes, named):
    with pytest.raises(LedgerError, match=rf"cannot resume .*{named}; keep the values it was started with"):
        training.train(make_recipe(**changes), line.train, options=cpu, resume=True)


def test_a_phase_is_not_continued_from_another_parent(line, make_recipe, cpu):
    with pytest.raises(LedgerError, match=r"cannot resume .*parent was"):
        training.finetune(make_recipe(), str(line.lwm), line.finetune, options=cpu, resume=True)


def test_a_damaged_state_is_named_and_nothing_is_lost(make_recipe, cpu, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_loss(patch, call=STEPS + 2)
        with pytest.raises(KeyboardInterrupt):
            training.train(make_recipe(), tmp_path / "run", options=cpu)
    state = tmp_path / "run" / "resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(LedgerError, match=r"resume\.pt cannot be resumed from .*delete the folder and start again"):
        training.train(make_recipe(), tmp_path / "run", options=cpu, resume=True)
    assert len(table(tmp_path / "run")) == 1
