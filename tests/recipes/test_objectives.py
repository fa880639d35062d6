"""What the `objective:` section of a recipe may say, and what evaluations take from it."""

from __future__ import annotations

import pytest
import yaml

from hydrabench.errors import ConfigError
from hydrabench.evaluators import with_default_threat
from hydrabench.objectives import OBJECTIVES
from hydrabench.objectives.crown_ibp import CrownIbpSettings
from hydrabench.recipes import load_recipe

RECIPE = {
    "name": "mine",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits"},
    "objective": {"name": "natural"},
    "train": {"epochs": 3, "lr": 0.1},
    "evaluate": [{"kind": "smoothing"}, {"kind": "smoothing", "sigma": 0.5}, {"kind": "clean"}],
}
SMALLEST = {
    "natural": "{name: natural}",
    "trades": "{name: trades, epsilon: 8/255}",
    "pgd": "{name: pgd, epsilon: 8/255}",
    "free": "{name: free, epsilon: 4/255}",
    "stability": "{name: stability, sigma: 0.25}",
    "smoothadv": "{name: smoothadv, epsilon: 1/2, sigma: 0.25}",
    "consistency": "{name: consistency, sigma: 0.25}",
    "macer": "{name: macer, sigma: 0.25}",
    "smoothmix": "{name: smoothmix, sigma: 0.25}",
    "cat-rs": "{name: cat-rs, epsilon: 1, sigma: 0.25}",
    "ibp": "{name: ibp, epsilon: 2/255}",
    "crown-ibp": "{name: crown-ibp, epsilon: 2/255}",
    "mixtrain": "{name: mixtrain, epsilon: 2/255, samples: 5}",
    "sabr": "{name: sabr, epsilon: 2/255, box: 0.1}",
    "mtl-ibp": "{name: mtl-ibp, epsilon: 2/255, ibp_weight: 0.004}",
    "cc-ibp": "{name: cc-ibp, epsilon: 2/255, ibp_weight: 0.01}",
    "exp-ibp": "{name: exp-ibp, epsilon: 2/255, ibp_weight: 0.095}",
}


@pytest.fixture
def read(tmp_path):
    def read(objective):
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(RECIPE))
        return load_recipe(path, [f"objective={objective}"])

    return read


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_read_with_its_required_keys_only(read, name):
    assert read(SMALLEST[name]).objective.name == name


def test_the_defaults_are_those_of_the_papers(read):
    free, stability = read(SMALLEST["free"]).objective, read(SMALLEST["stability"]).objective
    ibp, crown_ibp = read(SMALLEST["ibp"]).objective, read(SMALLEST["crown-ibp"]).objective
    assert free.repeats == 4
    assert (stability.beta, stability.variant) == (6.0, "stability")
    assert (ibp.kappa_start, ibp.kappa_end) == (1.0, 0.5)
    assert (crown_ibp.beta_end, crown_ibp.kappa_start, crown_ibp.kappa_end) == (0, 0, 0)


def test_the_defaults_of_mixtrain_are_those_of_the_original(read):
    mixtrain = read(SMALLEST["mixtrain"]).objective
    assert (mixtrain.probability, mixtrain.weight, mixtrain.weight_growth) == (0.8, 0.1, 2.5)
    assert (mixtrain.weight_every, mixtrain.weight_max) == (5, 50)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{name: pgd}", r"objective\.epsilon: is required"),
        ("{name: pgd, epsilon: 8}", r"if you mean 8 of 255 grey levels, write 8/255"),
        ("{name: pgd, epsilon: 8/255, steps: 0}", r"objective\.steps: input should be greater than 0 \(got 0\)"),
        ("{name: free, epsilon: 4/255, repeats: 0}", r"objective\.repeats: input should be greater than 0"),
        ("{name: free, epsilon: 4/255, norm: l2}", r"objective\.norm: unknown key"),
        ("{name: stability}", r"objective\.sigma: is required"),
        ("{name: stability, sigma: 0}", r"objective\.sigma: input should be greater than 0"),
        ("{name: stability, sigma: 0.25, epsilon: 8/255}", r"objective\.epsilon: unknown key"),
        ("{name: stability, sigma: 0.25, variant: noisy}", r"objective\.variant: input should be 'stability' or 'gaus"),
        ("{name: ibp, epsilon: 2/255, kappa_end: 1.5}", r"objective\.kappa_end: input should be less than or equal"),
        ("{name: crown-ibp, epsilon: 2/255, kappa_start: -1}", r"objective\.kappa_start: input should be greater"),
        ("{name: sabr, epsilon: 2/255, box: 0}", r"objective\.box: input should be greater than 0"),
        (
            "{name: mtl-ibp, epsilon: 2/255, ibp_weight: 1.5}",
            r"objective\.ibp_weight: input should be less than or equal",
        ),
        ("{name: mixtrain, epsilon: 2/255}", r"objective\.samples: is required"),
        ("{name: mixtrain, epsilon: 2/255, samples: 1, probability: 80}", r"objective\.probability: .* \(got 80\)"),
        ("{name: mixtrain, epsilon: 2/255, samples: 1, weight_growth: 0.5}", r"objective\.weight_growth: .*equal to 1"),
        ("{name: mixtrain, epsilon: 2/255, samples: 1, weight: 60}", r"objective: weight 60 exceeds weight_max 50"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_place(read, objective, message):
    with pytest.raises(ConfigError, match=message):
        read(objective)


def test_plain_values_spell_out_the_defaults():
    assert CrownIbpSettings(name="crown-ibp", epsilon="2/255", kappa_end=0.5).plain() == {
        "name": "crown-ibp",
        "epsilon": "2/255",
        "beta_end": 0.0,
        "kappa_start": 0.0,
        "kappa_end": 0.5,
    }


def test_smoothing_takes_the_noise_that_the_network_was_trained_with(read):
    stability = read("{name: stability, sigma: 0.12}")
    assert [getattr(entry, "sigma", None) for entry in stability.evaluate] == [0.12, 0.5, None]
    natural = read("{name: natural}")
    assert [getattr(entry, "sigma", None) for entry in natural.evaluate] == [0.25, 0.5, None]


def test_noise_is_no_radius_and_a_radius_no_noise():
    assert with_default_threat({"kind": "pgd"}, {"sigma": 0.5}) == {"kind": "pgd"}
    assert with_default_threat({"kind": "smoothing"}, {"epsilon": "8/255"}) == {"kind": "smoothing"}
    assert with_default_threat({"kind": "smoothing"}, {"sigma": 0.5}) == {"kind": "smoothing", "sigma": 0.5}
