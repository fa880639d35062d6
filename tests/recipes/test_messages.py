"""No message about a value names its field twice, as "epsilon: epsilon '8'" does."""

from __future__ import annotations

import re

import pytest

from hydrabench.config import Normalization
from hydrabench.config.parsing import parse
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, parse_settings
from hydrabench.objectives import OBJECTIVES
from hydrabench.recipes.phases import FinetuneRecipe, PruneRecipe, TrainRecipe

WRONG = ["x", "8", "1,x", "2:1:1", "300/255", -1, 1e12, 10**30, 1.5, True, None, [], ["x"], [8, 8], {}, {"x": 8}]
DOUBLED = re.compile(r"\b([\w-]+): (?:unknown )?\1\b")
SECTIONS = {"train": TrainRecipe, "prune": PruneRecipe, "finetune": FinetuneRecipe, "normalization": Normalization}


def complaints(model, base, check):
    """Every message about a field of `model` that has a wrong value, the others being right."""
    for field in model.model_fields:
        for value in WRONG:
            try:
                check({**base, field: value})
            except ConfigError as error:
                yield str(error)


@pytest.mark.parametrize("kind", EVALUATORS)
def test_settings_of_an_evaluation(kind):
    radius = {"epsilon": "8/255"} if "epsilon" in EVALUATORS[kind].settings.model_fields else {}
    noise = {"sigma": 0.25} if "sigma" in EVALUATORS[kind].settings.model_fields else {}
    found = [*complaints(EVALUATORS[kind].settings, {"kind": kind, **radius, **noise}, parse_settings)]
    assert found
    assert not [text for text in found if DOUBLED.search(text)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_settings_of_an_objective(name):
    model = OBJECTIVES[name].settings
    radius = {"epsilon": "8/255"} if "epsilon" in model.model_fields else {}
    found = [*complaints(model, {"name": name, **radius}, lambda values: parse(model, values, "a recipe"))]
    assert found
    assert not [text for text in found if DOUBLED.search(text)]


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_of_a_recipe(section):
    found = [*complaints(SECTIONS[section], {}, lambda values: parse(SECTIONS[section], values, "a recipe"))]
    assert len(found) > 10
    assert not [text for text in found if DOUBLED.search(text)]


def test_a_radius_in_grey_levels():
    with pytest.raises(ConfigError, match=r"^pgd: epsilon: '8' lies outside \[0, 1\], .* write 8/255$"):
        parse_settings({"kind": "pgd", "epsilon": "8"})
