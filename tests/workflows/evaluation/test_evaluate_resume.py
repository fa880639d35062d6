"""attack and certify after an interruption go on to the same records; with other settings they do not."""

from __future__ import annotations

import pytest
import torch

from hydrabench.errors import (
    LedgerError,
    MemoryShortageError,
)
from hydrabench.evaluators import (
    PgdSettings,
)
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from tests.helpers.evaluations import CASES, PGD, interrupt, numbers, read


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
