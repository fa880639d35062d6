"""hydrabench list: every entry of every registry, with a line on it."""

from __future__ import annotations

import click.testing
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


def test_a_recipe_is_listed_with_a_whole_sentence_that_points_to_nothing_outside(hydrabench):
    lines = hydrabench("list", "recipes").output.splitlines()
    assert not [line for line in lines if not line.endswith(".") or "reference/" in line]


def test_lines_are_broken_on_a_terminal_and_whole_in_a_pipe(hydrabench, monkeypatch):
    whole = hydrabench("list", "attacks").output.splitlines()
    assert max(map(len, whole)) > 100
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _self: True, raising=False)
    broken = hydrabench("list", "attacks").output
    assert max(map(len, broken.splitlines())) <= 100
    assert broken.split() == " ".join(whole).split()


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_zoo_fits_into_a_terminal_and_names_the_radius_of_its_numbers(hydrabench, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    title, *lines = hydrabench("zoo", "list").output.splitlines()
    assert max(map(len, lines)) <= columns
    assert title.split()[-1] == ("where" if columns > 80 else "radius")
    radii = {line.split()[0]: line[title.index("radius") :][:7].strip() for line in lines}
    assert radii["cifar10-crown-ibp-99"] == "2/255"
    assert radii["digits-trades"] == "16/255"
    assert radii["hydra/cifar10-wrn_28_4-adv-99"] == "paper"
    assert radii["hydra/cifar10-wrn_28_4-smooth-99"] == "paper"
    assert radii["cifar10-stability-wrn-99"] == "L2 0.25"
    certified = {line.split()[0]: line[title.index("certified") :][:9].strip() for line in lines}
    assert certified["hydra/cifar10-wrn_28_4-smooth-99"] == "56.0"
    assert certified["cifar10-crown-ibp-99"] == ""
