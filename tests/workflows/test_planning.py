"""What a pipeline says it will do before it does it, for a tiny recipe and for every shipped one."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.config import Recipe, load_recipe
from hydrabench.data import DATASETS
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS
from hydrabench.files import shipped
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES
from hydrabench.workflows import costs, planning
from hydrabench.workflows.costs import EVALUATION_PASSES, TRAINING_PASSES, Schedule, Sizes, sizes_of
from hydrabench.workflows.planning import dry_run, plan, plan_text
from hydrabench.workflows.training import fresh_network

RECIPES = sorted(path.stem for path in shipped("configs").glob("*.yml"))
DEPENDS_ON_WEIGHTS = {"symbolic", "crown", "alpha-crown", "cascade"}


def test_the_runs_of_a_pipeline_in_order(make_recipe):
    steps = plan(make_recipe(pipeline={"densities": [0.1, 0.05], "lwm": True}))
    assert [(step.name, step.source, step.section, step.evaluated) for step in steps] == [
        ("train", None, "train", True),
        ("prune-0.1", "train", "prune", False),
        ("finetune-0.1", "prune-0.1", "finetune", True),
        ("lwm-0.1", "train", "finetune", True),
        ("prune-0.05", "train", "prune", False),
        ("finetune-0.05", "prune-0.05", "finetune", True),
        ("lwm-0.05", "train", "finetune", True),
    ]
    assert [step.name for step in plan(make_recipe(pipeline={"densities": []}))] == ["train"]


def test_without_fine_tuning_the_pruned_networks_are_evaluated(make_recipe):
    steps = plan(make_recipe(finetune=None, pipeline={"densities": [0.5], "lwm": False}))
    assert [(step.name, step.evaluated) for step in steps] == [("train", True), ("prune-0.5", True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune": None}, r"recipe tiny needs a `prune:` section for its pipeline\.densities"),
        ({"finetune": None}, r"needs a `finetune:` section for its LWM twins; add one, or write `lwm: false`"),
        ({"prune": {"density": {"0": 0.5}}}, r"densities by layer, which its pipeline\.densities would override"),
    ],
)
def test_a_pipeline_that_lacks_a_section_says_which(make_recipe, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(make_recipe(**changes))


def test_the_operations_of_a_forward_pass_worked_by_hand():
    """cifar_model at 3x32x32, two operations a multiplication: 4096 · 48 + 2048 · 256 + 100 · 2048 + 10 · 100, twice.

    Symbolic bounds of every neuron pass back through everything up to it: 4096 neurons through the first 393,216
    operations, 2048 through 1,441,792, 100 through 1,851,392 and 10 through all 1,853,392.
    """
    sizes = sizes_of(build_model("cifar_model", (3, 32, 32), 10).eval(), (3, 32, 32), 10)
    assert sizes.flops == 2 * (4096 * 48 + 2048 * 256 + 100 * 2048 + 10 * 100) == 1_853_392
    backward = 4096 * 393_216 + 2048 * 1_441_792 + 100 * 1_851_392 + 10 * 1_853_392
    assert sizes.symbolic == pytest.approx(backward / 1_853_392)


def test_a_step_of_trades_10_is_27_forward_passes():
    """One clean pass for the attack, ten with a gradient to the image (2 each), two with all gradients (3 each)."""
    recipe = load_recipe("digits-trades")
    assert TRAINING_PASSES["trades"](recipe.objective, Schedule(64, 0.0), Sizes(1.0, 1.0, 10)) == 1 + 20 + 6


def test_crown_ibp_costs_its_transposed_passes_only_while_the_radius_grows():
    """Clean pass 1, boxes 2 · 3, and nine transposed passes with gradients on a quarter of the steps: 27 / 4."""
    objective = load_recipe("digits-crown-ibp").objective
    sizes = Sizes(1.0, 1.0, 10)
    assert TRAINING_PASSES["crown-ibp"](objective, Schedule(64, 0.0), sizes) == 7
    assert TRAINING_PASSES["crown-ibp"](objective, Schedule(64, 0.25), sizes) == 7 + 27 / 4


def test_every_objective_data_set_and_evaluation_has_its_cost():
    assert set(TRAINING_PASSES) == set(OBJECTIVES)
    assert set(planning.PUBLISHED_IMAGES) == set(DATASETS)
    assert set(EVALUATION_PASSES) == set(EVALUATORS) - DEPENDS_ON_WEIGHTS


@pytest.fixture
def known_rate(monkeypatch):
    """A machine of 1 GFLOP/s, which nobody has to measure."""
    monkeypatch.setattr(planning, "measured_rate", lambda *_arguments: 1e9)


def test_costs_add_up(make_recipe, known_rate):
    recipe = make_recipe()
    planned = dry_run(recipe, fresh_network(recipe).eval(), device="cpu")
    costs = [entry["pflop"] for entry in (*planned["runs"], *planned["evaluations"])]
    assert planned["total"]["pflop"] == pytest.approx(sum(costs))
    assert planned["total"]["seconds"] == pytest.approx(planned["total"]["pflop"] * 1e6)
    train = planned["runs"][0]
    assert (train["images"], train["steps"], train["epochs"]) == (1038, 15, 3)  # 80 % of 1297, five batches of 256
    assert [(entry["protocol"], len(entry["runs"])) for entry in planned["evaluations"]] == [
        ("pgd-3@1", 3),
        ("crown-ibp@1", 3),
    ]


def test_the_rate_of_a_machine_is_positive_and_timed_on_the_network_itself(monkeypatch):
    monkeypatch.setattr(costs, "MEASURED_SECONDS", 0.01)
    network = build_model("cifar_model", (1, 8, 8), 10).eval()
    sizes = sizes_of(network, (1, 8, 8), 10)
    import torch

    assert costs.measured_rate(network, (1, 8, 8), sizes, torch.device("cpu")) > 1e6


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_can_be_planned(name, known_rate):
    recipe = load_recipe(name)
    planned = dry_run(recipe, fresh_network(recipe).eval(), device="cpu")
    assert planned["total"]["pflop"] > 0
    text = plan_text(planned)
    resolved = yaml.safe_load(text.partition("# runs")[0])
    assert Recipe.model_validate(resolved) == recipe, "the YAML that is printed is the same recipe again"
    assert all(run["name"] in text for run in planned["runs"])


def test_the_dry_run_of_the_command_line_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "MEASURED_SECONDS", 0.001)
    result = CliRunner().invoke(main, ["pipeline", "--config", "digits-trades", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "lwm-0.01" in result.output
    assert "PFLOP" in result.output
    assert not list(tmp_path.iterdir())
    as_json = CliRunner().invoke(main, ["pipeline", "--config", "digits-trades", "--dry-run", "--json"])
    assert json.loads(as_json.output)["recipe"]["name"] == "digits-trades"
