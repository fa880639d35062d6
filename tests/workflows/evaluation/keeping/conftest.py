"""Runs that keep their adversarial images."""

from __future__ import annotations

import shutil

import pytest

from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from tests.helpers.evaluations import Made
from tests.helpers.keeping import CASES, settings_of


@pytest.fixture(scope="session")
def subject(cpu):
    return open_subject("digits-trades-95", options=cpu)


@pytest.fixture(scope="session")
def runs(subject, cpu, tmp_path_factory):
    def make(name, folder):
        values, n = CASES[name]
        evaluate(subject, settings_of(values), folder, options=cpu, n=n)

    return Made(tmp_path_factory.mktemp("kept"), make)


@pytest.fixture
def copy(runs, tmp_path):
    shutil.copytree(runs / "pgd", tmp_path / "pgd")
    return tmp_path / "pgd"
