"""`base:` in recipes: what is merged, what is replaced, and how mistakes are reported."""

from __future__ import annotations

import pytest

from hydrabench.errors import ConfigError
from hydrabench.recipes import load_recipe

PARENT = """
name: parent
model: {arch: cifar_model}
data: {name: digits, crop_padding: 1}
objective: {name: trades, epsilon: 8/255, beta: 3}
train: {epochs: 4, lr: 0.1}
prune: {epochs: 2, lr: 0.1}
finetune: {epochs: 2, lr: 0.1}
pipeline: {densities: [0.1, 0.05]}
evaluate: [{kind: pgd}, {kind: ibp}]
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "parent.yml").write_text(PARENT)

    def child(text: str, name: str = "child.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return child


def test_sections_are_merged_key_by_key_and_lists_are_replaced(write):
    recipe = load_recipe(
        write(
            "base: parent.yml\nname: child\ntrain: {epochs: 9}\npipeline: {densities: [0.5]}\nevaluate: [{kind: clean}]"
        )
    )
    assert (recipe.name, recipe.model.arch, recipe.data.crop_padding) == ("child", "cifar_model", 1)
    assert (recipe.train.epochs, recipe.train.lr) == (9, 0.1)
    assert recipe.pipeline.densities == (0.5,)
    assert [settings.kind for settings in recipe.evaluate] == ["clean"]


def test_an_objective_of_the_same_name_is_merged_and_one_of_another_name_starts_afresh(write):
    """With the parent's `beta` left in it, `crown-ibp` would have an unknown key."""
    same = load_recipe(write("base: parent.yml\nname: child\nobjective: {epsilon: 2/255}"))
    assert (same.objective.name, same.objective.beta, float(same.objective.epsilon)) == ("trades", 3, 2 / 255)
    other = load_recipe(write("base: parent.yml\nname: child\nobjective: {name: crown-ibp, epsilon: 2/255}"))
    assert other.objective.name == "crown-ibp"


def test_null_takes_a_section_away(write):
    recipe = load_recipe(write("base: parent.yml\nname: child\nfinetune: null\npipeline: {lwm: false}"))
    assert recipe.finetune is None
    assert recipe.prune is not None


def test_bases_are_found_beside_the_file_that_names_them_and_may_have_bases(write):
    write("base: ../parent.yml\nname: middle\ntrain: {epochs: 7}", "folder/middle.yml")
    recipe = load_recipe(write("base: folder/middle.yml\nname: leaf\ntrain: {lr: 0.3}", "leaf.yml"))
    assert (recipe.name, recipe.train.epochs, recipe.train.lr, recipe.data.name) == ("leaf", 7, 0.3, "digits")


def test_a_shipped_recipe_can_be_a_base_by_its_name(write):
    recipe = load_recipe(write("base: digits-trades\nname: mine\ntrain: {epochs: 1}"))
    assert (recipe.name, recipe.train.epochs) == ("mine", 1)
    assert recipe.prune == load_recipe("digits-trades").prune


def test_overrides_come_after_all_bases(write):
    assert load_recipe(write("base: parent.yml\nname: c\ntrain: {epochs: 9}"), ["train.epochs=2"]).train.epochs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: missing.yml\nname: c", r"no recipe 'missing\.yml'; give a YAML file, or a name of"),
        ("base: [parent.yml]\nname: c", r"child\.yml: base: is the file or name of one recipe, got \['parent\.yml'\]"),
        ("base: child.yml\nname: c", r"is based on itself: child\.yml -> child\.yml; take one `base:` out"),
        (
            "base: parent.yml\nname: c\ntrain: {epoch: 3}",
            r"child\.yml: train\.epoch: unknown key, did you mean 'epochs'",
        ),
        ("base: parent.yml\nname: c\ntrain: 3", r"train: "),
        (
            "base: parent.yml\nname: c\ntrain: {objective: {name: trades, epsilon: 8/255, bet: 1}}",
            r"did you mean 'beta'",
        ),
    ],
)
def test_mistakes_are_named(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(text))


def test_a_circle_of_bases_is_named(write):
    write("base: b.yml\nname: a", "a.yml")
    with pytest.raises(ConfigError, match=r"is based on itself: b\.yml -> a\.yml -> b\.yml"):
        load_recipe(write("base: a.yml\nname: b", "b.yml"))


def test_a_phase_may_have_an_objective_of_its_own(write):
    recipe = load_recipe(write("base: parent.yml\nname: c\ntrain: {objective: {name: natural}}"))
    assert recipe.objective_of("train").name == "natural"
    assert recipe.objective_of("prune").name == "trades"
    assert recipe.of_phase("train")["objective"] == {"name": "natural"}


def test_an_objective_written_at_the_phase_or_at_the_recipe_makes_the_same_phase(write):
    at_phase = load_recipe(write("base: parent.yml\nname: c\ntrain: {objective: {name: natural}}"))
    at_recipe = load_recipe(write("base: parent.yml\nname: c\nobjective: {name: natural}\nevaluate: []"))
    assert at_phase.of_phase("train") == at_recipe.of_phase("train")
    assert at_phase.of_phase("prune") != at_recipe.of_phase("prune")
