"""The gate over the checkpoints that come with hydrabench: a few images of each against the shipped ledgers."""

from __future__ import annotations

import gzip
import json

import pytest

from hydrabench.checkpoints import read_zoo
from hydrabench.evaluators import parse_settings
from hydrabench.files import shipped
from hydrabench.ledger import read_run
from hydrabench.reporting.baseline import Ledger, ledger_of
from hydrabench.reporting.comparison import Tolerance, compare
from hydrabench.reporting.evaluations import ImageSelection, read_evaluation
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject

N = {"pgd": 3, "smoothing": 1}  # images; bounds are cheaper
BOUNDED = 10
ENTRIES = {name: entry for name, entry in read_zoo().items() if entry.results}


def shipped_ledger(entry, result):
    settings = parse_settings(result.settings, entry.id)
    with gzip.open(shipped("zoo") / result.ledger, "rt") as file:
        lines = tuple(map(json.loads, file))
    images = ImageSelection(entry.dataset, "test", result.n)
    about = (entry.id, entry.sha256, images, "float32", settings.protocol, settings.plain(), lines)
    return Ledger(result.ledger, *about)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_shipped_checkpoint_passes_the_gate(name, cpu, tmp_path):
    entry = ENTRIES[name]
    subject = open_subject(name, options=cpu)
    runs = []
    for result in entry.results:
        settings = parse_settings(result.settings, name)
        evaluate(subject, settings, tmp_path / settings.kind, options=cpu, n=N.get(settings.kind, BOUNDED))
        runs.append(ledger_of(read_evaluation(read_run(tmp_path / settings.kind))))
    verdict = compare(runs, [shipped_ledger(entry, result) for result in entry.results], Tolerance())
    assert verdict.outcome == "passed"
    assert {one.n for one in verdict.comparisons} == {
        N.get(result.settings["kind"], BOUNDED) for result in entry.results
    }
    assert {one.held for one in verdict.comparisons} == {result.n for result in entry.results}
