"""hydrabench list: every entry of every registry, with a line on it."""

from __future__ import annotations

import pytest

from hydrabench.cli.listing import KINDS
from hydrabench.data import DATASETS
from hydrabench.data.forms import OWN_PLACES
from hydrabench.evaluators import EVALUATORS
from hydrabench.models import MODELS
from hydrabench.objectives import OBJECTIVES

ENTRIES = {
    "attacks": {kind for kind, one in EVALUATORS.items() if one.command == "attack"},
    "methods": {kind for kind, one in EVALUATORS.items() if one.command == "certify"},
    "objectives": set(OBJECTIVES),
    "datasets": {*DATASETS, *OWN_PLACES},
    "architectures": set(MODELS),
    "recipes": {"digits-trades", "hydra-imagenet-free-resnet50"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_is_listed_with_a_line(hydrabench, kind):
    lines = [line.partition(" ") for line in hydrabench("list", kind).output.splitlines()]
    assert {name for name, _, _ in lines} >= ENTRIES[kind]
    assert all(text.strip() for _, _, text in lines), [name for name, _, text in lines if not text.strip()]


def test_what_cannot_be_listed_is_a_usage_error(hydrabench):
    assert hydrabench("list", "colours").exit_code == 2
