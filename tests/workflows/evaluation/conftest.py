"""The network that most evaluations here are of, and one finished run of every kind."""

from __future__ import annotations

import pytest

from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from tests.helpers.evaluations import CASES, Made


@pytest.fixture(scope="session")
def subject(line, cpu):
    return open_subject(str(line.train), options=cpu)


@pytest.fixture(scope="session")
def runs(subject, cpu, tmp_path_factory):
    """One finished run of every kind, uninterrupted."""

    def make(kind, folder):
        settings, n, _, _ = CASES[kind]
        evaluate(subject, settings, folder, options=cpu, n=n)

    return Made(tmp_path_factory.mktemp("evaluations"), make)
