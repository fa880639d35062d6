"""What a recipe may say about budgets and scores, and what its hash ignores."""

from __future__ import annotations

import pytest
import yaml

from hydrabench.errors import ConfigError
from hydrabench.recipes import load_recipe, sha256_of_values

RECIPE = {
    "name": "mine",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits"},
    "objective": {"name": "natural"},
    "train": {"epochs": 3, "lr": 0.1},
    "prune": {"epochs": 1, "lr": 0.1},
    "finetune": {"epochs": 2, "lr": 0.01},
}


@pytest.fixture
def read(tmp_path):
    def read(*overrides):
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(RECIPE))
        return load_recipe(path, overrides)

    return read


def test_the_defaults_are_one_budget_for_each_layer_and_scaled_scores(read):
    recipe = read()
    assert (recipe.train.density, recipe.train.scores, recipe.train.rescale_weights) == (1.0, "snip", False)
    assert (recipe.prune.density, recipe.prune.scope, recipe.prune.scores) == (None, "layer", "scaled")


def test_a_density_may_be_given_for_each_layer_also_under_names_that_yaml_reads_as_numbers(read):
    recipe = read("prune.density={0: 0.5, 2: 0.1, features.3: 1}", "train.density={0: 1}")
    assert recipe.prune.density == {"0": 0.5, "2": 0.1, "features.3": 1.0}
    assert recipe.train.density == {"0": 1.0}


@pytest.mark.parametrize("section", ["train", "prune", "finetune"])
def test_a_global_budget_takes_one_density(read, section):
    assert getattr(read(f"{section}.density=0.1", f"{section}.scope=global"), section).scope == "global"
    with pytest.raises(ConfigError, match=rf"{section}: scope global takes one density for all layers together, not"):
        read(f"{section}.density={{'0': 0.1}}", f"{section}.scope=global")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "prune.scores=snap",
            r"prune\.scores: input should be 'scaled', 'kaiming_normal', .* or 'snip' \(got 'snap'\)",
        ),
        ("train.scores=snap", r"train\.scores: input should be 'scaled'"),
        ("prune.budget_weight=0.1", r"prune: budget_weight 0\.1 is for scope learned, not layer; leave it out"),
        ("prune.rate_lr=0.05", r"prune: rate_lr 0\.05 is for scope learned, not layer; leave it out"),
        ("finetune.scope=learned", r"finetune\.scope: input should be 'layer' or 'global' \(got 'learned'\)"),
        ("prune.scope=local", r"prune\.scope: input should be 'layer', 'global' or 'learned' \(got 'local'\)"),
        ("prune.density={a: 90}", r"yml: prune\.density\.a: is the fraction of weights kept, in \(0, 1\], got 90; to"),
        ("prune.density=90", r"yml: prune\.density: is the fraction of weights kept, in \(0, 1\], got 90; to prune"),
        ("prune.density=tenth", r"yml: prune\.density: input should be a valid number.* \(got 'tenth'\)$"),
        ("train.density=null", r"yml: train\.density: "),
        ("finetune.scores=snip", r"finetune\.scores: unknown key"),
        ("prune.initialization=ibp", r"prune\.initialization: unknown key"),
        ("train.initialization=xavier", r"train\.initialization: input should be 'default' or 'ibp' \(got 'xavier'\)"),
    ],
)
def test_a_bad_budget_is_named_with_its_place(read, override, message):
    with pytest.raises(ConfigError, match=message):
        read(override)


@pytest.mark.parametrize("section", ["train", "prune", "finetune"])
def test_what_a_phase_depends_on_holds_every_setting_with_its_default(read, section):
    """So that a default that is changed later does not change what an old file says."""
    values, recipe = read().of_phase(section), read()
    assert values[section] == {**getattr(recipe, section).plain(), "objective": None}
    assert values[section].keys() == type(getattr(recipe, section)).model_fields.keys()
    assert values["data"].keys() | {"test"} == type(recipe.data).model_fields.keys()  # no phase sees test images
    assert "test" not in values["data"]


@pytest.mark.parametrize(
    ("section", "override"),
    [
        ("train", "train.density=0.5"),
        ("train", "train.scores=scaled"),
        ("train", "train.rescale_weights=true"),
        ("train", "train.initialization=ibp"),
        ("train", "train.scope=global"),
        ("prune", "prune.scores=snip"),
        ("prune", "prune.scope=global"),
        ("prune", "prune.density={a: 0.5}"),
        ("finetune", "finetune.scope=global"),
    ],
)
def test_any_other_value_changes_the_hash(read, section, override):
    plain, changed = read().of_phase(section), read(override).of_phase(section)
    assert sha256_of_values(plain) != sha256_of_values(changed)


@pytest.mark.parametrize(
    ("override", "received"),
    [
        ("train.density=0.5", "density 0.5 and rescale_weights false"),
        ("train.density={a: 0.5}", r"density \{'a': 0.5\} and rescale_weights false"),
        ("train.rescale_weights=true", "density 1.0 and rescale_weights true"),
    ],
)
def test_weights_for_interval_bounds_are_those_of_dense_layers(read, override, received):
    message = rf"train: initialization ibp sizes weights for layers that keep all of them, got {received}; train dense"
    with pytest.raises(ConfigError, match=message):
        read("train.initialization=ibp", override)
