"""Recipes are checked once, completely, and every problem is named with its place."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal

import pytest
import yaml

from hydrabench.errors import ConfigError
from hydrabench.evaluators import (
    AlphaCrownSettings,
    AutoAttackSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
    at,
    with_default_threat,
)
from hydrabench.evaluators.verified_settings import CASCADE_METHODS
from hydrabench.files import shipped
from hydrabench.models import MODELS, Architecture
from hydrabench.objectives import OBJECTIVES, ObjectiveSettings
from hydrabench.recipes import Recipe, load_recipe, sha256_of_values

RECIPE = {
    "name": "mine",
    "model": {"arch": "cifar_model"},
    "data": {"name": "digits"},
    "objective": {"name": "trades", "epsilon": "8/255"},
    "train": {"epochs": 3, "lr": 0.1},
    "prune": {"epochs": 1, "lr": 0.1},
    "finetune": {"epochs": 2, "lr": 0.01},
    "evaluate": [{"kind": "pgd"}, {"kind": "ibp", "epsilon": "2/255"}, {"kind": "smoothing"}],
}


def write(tmp_path, **changes):
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


@pytest.mark.parametrize("path", sorted(shipped("configs").glob("*.yml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_is_named_after_its_file(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe == load_recipe(path.stem)
    assert recipe.evaluate


def test_a_recipe_is_read_exactly_and_completed(tmp_path):
    recipe = load_recipe(write(tmp_path))
    assert recipe.objective.epsilon == Fraction(8, 255)
    assert recipe.evaluate[0].epsilon == Fraction(8, 255)  # inherited from the objective
    assert recipe.evaluate[1].epsilon == Fraction(2, 255)
    assert recipe.model_dump(mode="json")["objective"]["epsilon"] == "8/255"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_every_problem_is_named_at_once(tmp_path):
    path = write(
        tmp_path,
        trian={},
        prune={"epochs": 0, "lr": 0.1, "density": 99},
        objective={"name": "trades", "epsilon": "8"},
        finetune={"epoch": 2, "lr": -1},
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "trian: unknown key, did you mean 'train'?",
        "prune.epochs: input should be greater than 0 (got 0)",
        "prune.density: is the fraction of weights kept, in (0, 1], got 99; to prune 99% of the weights write",
        "objective.epsilon: '8' lies outside [0, 1]",
        "finetune.epoch: unknown key, did you mean 'epochs'?",
        "finetune.epochs: is required",
        "finetune.lr: input should be greater than 0 (got -1)",
    ):
        assert part in message


def test_all_values_that_do_not_go_together_are_named_at_once_section_by_section(tmp_path):
    """A section with a value that is wrong in itself says only that; the others name all of their conflicts."""
    ramp = {"epochs": 3, "lr": 0.1, "epsilon_ramp_epochs": 9, "warmup_epochs": 3, "nesterov": True, "momentum": 0}
    entry = {"kind": "cascade", "norm": "l2", "epsilon": "1", "methods": ["alpha-crown", "ibp", "ibp"]}
    entry |= {"rigor": "sound"}
    path = write(
        tmp_path,
        train={**ramp, "initialization": "ibp", "density": 0.5},
        prune={**ramp, "ema_decay": 0.5, "scope": "global", "density": {"1": 0.1}},
        finetune={**ramp, "lr": -1},
        evaluate=[entry],
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    found = str(caught.value)
    for section in ("train", "prune"):
        assert found.count(f"{section}: epsilon_ramp_epochs 9 exceeds epochs 3, which it is part of; lower it") == 1
        assert found.count(f"{section}: warmup_epochs 3 are part of epochs 3 and must leave one; raise epochs") == 1
        assert found.count(f"{section}: nesterov needs optimizer sgd and a momentum above 0, got sgd and 0") == 1
    assert "train: initialization ibp sizes weights for layers that keep all of them, got density 0.5" in found
    assert "prune: ema_decay averages weights, which `prune` does not train; leave it out (0.5)" in found
    assert "prune: scope global takes one density for all layers together" in found
    assert "evaluate.0: methods: names one twice, got alpha-crown,ibp,ibp; name each once" in found
    assert "evaluate.0: methods: alpha-crown, by far the slowest, comes last" in found
    assert "evaluate.0: rigor: sound is for ibp and crown-ibp in linf" in found
    assert found.count("finetune") == found.count("finetune.lr: input should be greater than 0 (got -1)") == 1


def test_a_key_that_belongs_elsewhere_gets_the_list_of_those_allowed_here(tmp_path):
    with pytest.raises(
        ConfigError, match=r"evaluate\.0\.sigma: unknown key, allowed are kind, norm, epsilon, search_radius"
    ):
        load_recipe(write(tmp_path), ["evaluate=[{kind: ibp, sigma: 0.5}]"])
    with pytest.raises(ConfigError, match=r"objective\.beta_endd: unknown key, did you mean 'beta_end'\?"):
        load_recipe(write(tmp_path), ["objective={name: crown-ibp, epsilon: 2/255, beta_endd: 0}"])


@pytest.mark.parametrize("density", [0, 1.5, 99])
def test_a_density_outside_its_range_is_explained(tmp_path, density):
    with pytest.raises(ConfigError, match=rf"in \(0, 1\], got {density}; to prune .*% .* write `density: 0\.\d+`"):
        load_recipe(write(tmp_path), [f"prune.density={density}"])


def test_overrides_are_yaml_values_at_dotted_keys(tmp_path):
    recipe = load_recipe(write(tmp_path), ["train.epochs=7", "objective.epsilon=2/255", "evaluate=[{kind: clean}]"])
    assert (recipe.train.epochs, recipe.objective.epsilon) == (7, Fraction(2, 255))
    assert [settings.protocol for settings in recipe.evaluate] == ["clean@1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set 'train.epochs': write KEY=VALUE, for example --set train.epochs=3"),
        ("name.x=1", "--set 'name.x=1': 'name' is a value, not a section"),
        ("train.epochs=[", "is not YAML: "),
        ("train.epochz=1", "train.epochz: unknown key, did you mean 'epochs'"),
        ("train=3", r"train: expected keys and values \(got 3\)"),
        (
            "objective.name=tradez",
            r"objective.name: unknown 'tradez'; did you mean 'trades'\? choose one of: cat-rs, cc-ibp",
        ),
        ("prune.objective={beta: 1}", r"prune.objective.name: is required"),
        ("evaluate=[{kind: x}]", r"evaluate.0.kind: unknown 'x'; choose one of: alpha-crown, apgd, autoattack, "),
    ],
)
def test_a_bad_override_is_refused(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_recipe(write(tmp_path), [override])


def test_files_that_are_no_recipes_are_refused(tmp_path):
    path = tmp_path / "x.yml"
    with pytest.raises(ConfigError, match=r"no recipe .*give a YAML file, or a name of"):
        load_recipe(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"x\.yml is not YAML"):
        load_recipe(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="does not hold a recipe: expected keys and values, found list"):
        load_recipe(path)


def test_a_ramp_longer_than_the_phase_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train: epsilon_ramp_epochs 4 exceeds epochs 3, .*; lower it, too, or"):
        load_recipe(write(tmp_path), ["train.epsilon_ramp_epochs=4"])


def test_protocol_ids_name_exactly_how_a_number_is_made():
    assert PgdSettings(epsilon="8/255").protocol == "pgd-50@2"
    assert PgdSettings(epsilon="8/255", steps=20, restarts=5, losses=("ce",)).protocol == "pgd-20-r5-ce@2"
    assert PgdSettings(epsilon="8/255", seed=3).protocol == "pgd-50-s3@2"
    assert AutoAttackSettings(epsilon="8/255").protocol == "aa-standard@2"
    assert VerifiedSettings(kind="crown-ibp", epsilon="8/255").protocol == "crown-ibp@1"
    assert VerifiedSettings(kind="cascade", epsilon="8/255").protocol == "cascade@1"
    assert VerifiedSettings(kind="cascade", epsilon="1/4", methods=("ibp", "crown")).protocol == "cascade-ibp+crown@1"
    lirpa = VerifiedSettings(kind="crown-ibp", epsilon="8/255", engine="auto_lirpa")
    assert lirpa.protocol == "crown-ibp-auto_lirpa@1"
    assert VerifiedSettings(kind="ibp", epsilon="8/255", rigor="sound").protocol == "ibp-sound@1"
    assert VerifiedSettings(kind="ibp", epsilon="8/255", rigor="deployed").protocol == "ibp-deployed@1"
    assert AlphaCrownSettings(epsilon="8/255").protocol == "alpha-crown@2"
    assert AlphaCrownSettings(epsilon="8/255", engine="auto_lirpa").protocol == "alpha-crown-auto_lirpa@1"
    limited = AlphaCrownSettings(epsilon="8/255", slopes="all", iterations=50, learning_rate=0.5, time_limit=2.5)
    assert limited.protocol == "alpha-crown-all-i50-lr0.5-t2.5@2"
    searched = VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "alpha-crown"))
    assert searched.protocol == "cascade-ibp+alpha-crown@2"
    values = {"slopes": "all", "iterations": 50, "learning_rate": 0.5, "time_limit": 2.5}
    limited = VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "alpha-crown"), **values)
    assert limited.protocol == "cascade-ibp+alpha-crown-all-i50-lr0.5-t2.5@2"
    assert SmoothingSettings().protocol == "smoothing-cohen@4"
    assert SmoothingSettings(samples=10_000, alpha=0.01).protocol == "smoothing-cohen-n10000-a0.01@4"


@pytest.mark.parametrize("rigor", ["sound", "deployed"])
@pytest.mark.parametrize("change", [{"kind": "crown"}, {"kind": "cascade"}, {"norm": "l2"}, {"engine": "auto_lirpa"}])
def test_rigor_is_refused_where_it_has_no_rules(change, rigor):
    values = {"kind": "ibp", "epsilon": "8/255"} | change
    assert VerifiedSettings.model_validate(values).rigor == "standard"
    with pytest.raises(ValueError, match=rf"rigor: {rigor} is for ibp and crown-ibp in linf, .*; got .*; change"):
        VerifiedSettings.model_validate({"rigor": rigor, **values})


@pytest.mark.parametrize("change", [{"kind": "cascade"}, {"kind": "symbolic"}, {"norm": "l2"}], ids=str)
def test_auto_lirpa_is_asked_for_what_it_gives_only(change):
    with pytest.raises(ValueError, match=r"auto_lirpa bounds linf balls by ibp, crown-ibp, crown, got .*; leave the"):
        VerifiedSettings.model_validate({"kind": "crown", "epsilon": "8/255", "engine": "auto_lirpa", **change})
    with pytest.raises(ValueError, match=r"auto_lirpa bounds linf balls, got l2; leave the engine at hydrabench"):
        AlphaCrownSettings(epsilon="1", norm="l2", engine="auto_lirpa")


def test_a_phase_depends_on_its_own_section_and_not_on_the_others(tmp_path):
    plain = load_recipe(write(tmp_path))
    others = load_recipe(write(tmp_path), ["finetune.lr=0.5", "evaluate=[{kind: clean}]", "train.batch_size=128"])
    assert plain.of_phase("train") == others.of_phase("train")
    assert plain.of_phase("finetune") != others.of_phase("finetune")
    assert plain.of_phase("train") != load_recipe(write(tmp_path), ["seed=1"]).of_phase("train")
    assert set(plain.of_phase("prune")) == {"name", "seed", "model", "data", "objective", "prune"}


def test_the_hash_of_values_ignores_the_order_of_keys():
    assert (
        sha256_of_values({"a": 1, "b": 2}) == sha256_of_values({"b": 2, "a": 1}) != sha256_of_values({"a": 1, "b": 3})
    )


def test_the_default_threat_fills_in_what_is_missing_only():
    threat = {"norm": "l2", "epsilon": "0.5"}
    assert with_default_threat({"kind": "pgd"}, threat) == {"kind": "pgd", "norm": "l2", "epsilon": "0.5"}
    assert with_default_threat({"kind": "pgd", "epsilon": "0.1"}, threat) == {"kind": "pgd", "epsilon": "0.1"}
    assert with_default_threat({"kind": "pgd", "norm": "linf"}, threat) == {"kind": "pgd", "norm": "linf"}
    assert with_default_threat({"kind": "smoothing"}, threat) == {"kind": "smoothing"}


@pytest.mark.parametrize(
    ("objective", "kinds", "problem"),
    [
        ({"name": "trades", "epsilon": "foo"}, ["pgd", "ibp", "crown"], "objective.epsilon: 'foo' is not a"),
        (
            {"name": "pgd", "epsilon": "8/255", "norm": "l7"},
            ["pgd", "ibp"],
            "objective.norm: input should be 'linf' or",
        ),
        ({"name": "stability", "sigma": -1}, ["smoothing", "smoothing"], "objective.sigma: input should be greater"),
        ({"name": "natural", "epsilon": "foo"}, ["pgd", "ibp"], "objective.epsilon: unknown key"),
    ],
)
def test_a_wrong_value_that_evaluations_inherit_is_named_once_and_where_it_stands(tmp_path, objective, kinds, problem):
    entries = [{"kind": kind} for kind in kinds]
    with pytest.raises(ConfigError, match=problem) as refused:
        load_recipe(write(tmp_path, objective=objective, evaluate=entries))
    assert str(refused.value).count("objective.") == 1
    assert "evaluate" not in str(refused.value)


def test_a_value_that_is_wrong_for_its_heirs_only_is_named_once_with_them(tmp_path, monkeypatch):
    """Smoothing minds noise in grey levels; an objective of others need not. An entry's own mistake is its own."""

    class Loose(ObjectiveSettings):
        name: Literal["loose"]
        sigma: float

    monkeypatch.setitem(OBJECTIVES, "loose", replace(OBJECTIVES["natural"], settings=Loose))
    entries = [{"kind": "smoothing"}, {"kind": "clean"}, {"kind": "smoothing", "seed": 3}]
    objective = {"name": "loose", "sigma": 50.0}
    with pytest.raises(ConfigError) as refused:
        load_recipe(write(tmp_path, objective=objective, evaluate=[*entries, {"kind": "pgd", "epsilon": "foo"}]))
    _, _, problems = str(refused.value).partition(": ")
    assert problems.startswith("evaluate.3.epsilon: 'foo' is not a radius")
    assert problems.count("sigma: ") == problems.count("; objective.sigma: ") == 1
    assert problems.endswith(" (inherited by evaluate.0, evaluate.2)")


def test_normalisation_needs_positive_deviations(tmp_path):
    model = {"arch": "cifar_model", "normalization": {"mean": [0.5], "std": [0.0]}}
    with pytest.raises(ConfigError, match=r"model\.normalization: needs one finite mean and one finite positive std"):
        load_recipe(write(tmp_path, model=model))


def test_methods_belong_to_a_cascade_and_are_named_once():
    with pytest.raises(ValueError, match=r"methods: belong to kind cascade, got ibp,crown with kind ibp"):
        VerifiedSettings(kind="ibp", epsilon="8/255", methods=("ibp", "crown"))
    with pytest.raises(ValueError, match=r"methods: names one twice, got ibp,ibp; name each once"):
        VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "ibp"))
    plain = VerifiedSettings(kind="ibp", epsilon="8/255").plain()
    assert plain["methods"] == list(CASCADE_METHODS), "the default, which is allowed"
    assert VerifiedSettings.model_validate(plain).plain() == plain


@pytest.mark.parametrize("methods", [("alpha-crown",), ("alpha-crown", "crown"), ("ibp", "alpha-crown", "crown")])
def test_alpha_crown_comes_last_in_a_cascade_and_not_alone(methods):
    with pytest.raises(ValueError, match=r"alpha-crown, by far the slowest, comes last and after a cheaper one, got"):
        VerifiedSettings(kind="cascade", epsilon="8/255", methods=methods)


def test_options_of_the_search_are_refused_where_there_is_none():
    searched = VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "alpha-crown"), iterations=7)
    assert (searched.plain()["methods"], searched.plain()["iterations"]) == (["ibp", "alpha-crown"], 7)
    for key, value in {"slopes": "all", "iterations": 3, "learning_rate": 1.0, "time_limit": 1.0}.items():
        with pytest.raises(ValueError, match=rf"{key}: is an option of alpha-crown, which is none of methods"):
            VerifiedSettings(kind="cascade", epsilon="8/255", **{key: value})
    with pytest.raises(ValueError, match="finite number"):
        VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "alpha-crown"), time_limit=float("inf"))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (VerifiedSettings(kind="cascade", epsilon="8/255"), False),
        (VerifiedSettings(kind="cascade", epsilon="8/255", methods=("ibp", "alpha-crown")), False),
        (VerifiedSettings(kind="crown", epsilon="8/255", engine="auto_lirpa"), True),
        (AlphaCrownSettings(epsilon="8/255"), False),
        (AlphaCrownSettings(epsilon="8/255", engine="auto_lirpa"), True),
    ],
    ids=lambda value: getattr(value, "protocol", value),
)
def test_settings_know_whether_they_need_auto_lirpa(settings, needed):
    assert settings.needs_auto_lirpa == needed


@pytest.mark.parametrize(
    ("radius", "shown"), [("1", "1"), ("2.0", "2"), ("0", "0"), ("0.5", "0.5"), ("8/255", "8/255")]
)
def test_a_radius_is_stored_as_it_is_shown_whole_ones_without_decimals(radius, shown):
    settings = VerifiedSettings(kind="ibp", norm="l2", epsilon=radius)
    assert at(settings) == f" at L2 {shown}"
    assert settings.plain()["epsilon"] == shown
    assert VerifiedSettings.model_validate(settings.plain()) == settings


def test_what_a_recipe_chooses_must_be_there(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, model={"arch": "cifar_modle"}, data={"name": "digit"}, train={"epochs": 1}))
    message = str(caught.value)
    assert "model.arch: unknown architecture 'cifar_modle'; did you mean 'cifar_model'? choose one of:" in message
    assert "data.name: unknown data set 'digit'; did you mean 'digits'? choose one of: cifar10, cifar100" in message
    assert "train.lr: is required" in message


def test_an_architecture_for_other_images_than_those_of_the_data_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "small", Architecture(MODELS["cifar_model"].build, shape=(3, 32, 32)))
    message = r"model\.arch: small is for images \(3, 32, 32\), got \(1, 8, 8\) from digits"
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, model={"arch": "small"}))


def test_a_registry_that_grows_takes_recipes_with_it(tmp_path, monkeypatch):
    class MineSettings(ObjectiveSettings):
        name: Literal["mine"]
        weight: float = 2.0

    monkeypatch.setitem(OBJECTIVES, "mine", replace(OBJECTIVES["natural"], settings=MineSettings))
    path = write(tmp_path, objective={"name": "mine", "weight": 3}, evaluate=[{"kind": "clean"}])
    recipe = load_recipe(path)
    assert recipe.objective == MineSettings(name="mine", weight=3.0)
    assert recipe.model_dump(mode="json")["objective"] == {"name": "mine", "weight": 3.0}
    with pytest.raises(ConfigError, match=r"objective\.weigth: unknown key, did you mean 'weight'\?"):
        load_recipe(path, ["objective={name: mine, weigth: 3}"])
