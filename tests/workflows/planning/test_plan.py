"""What a pipeline says it will do before it does it, for a tiny recipe and for every shipped one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from click.testing import CliRunner

from hydrabench.cli import main
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, Sizes, parse_settings
from hydrabench.files import shipped
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, Workload
from hydrabench.recipes import Recipe, load_recipe
from hydrabench.workflows.planning import costs, timing
from hydrabench.workflows.planning import plan as planning
from hydrabench.workflows.planning.costs import sizes_of
from hydrabench.workflows.planning.plan import dry_run, plan, plan_text
from hydrabench.workflows.training.commands import fresh_network

RECIPES = sorted(path.stem for path in shipped("configs").glob("*.yml"))
DEPENDS_ON_WEIGHTS = {"symbolic", "crown", "alpha-crown", "cascade", "exact"}


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
    assert OBJECTIVES["trades"].passes(recipe.objective, Workload(64, 0.0, 10, 1.0)) == 1 + 20 + 6


def test_crown_ibp_costs_its_transposed_passes_only_while_the_radius_grows():
    """Clean pass 1, boxes 2 · 3, and nine transposed passes with gradients on a quarter of the steps: 27 / 4."""
    objective = load_recipe("digits-crown-ibp").objective
    passes = OBJECTIVES["crown-ibp"].passes
    assert passes(objective, Workload(64, 0.0, 10, 1.0)) == 7
    assert passes(objective, Workload(64, 0.25, 10, 1.0)) == 7 + 27 / 4


def test_every_evaluation_has_its_cost():
    assert {kind for kind, one in EVALUATORS.items() if one.passes is None} == DEPENDS_ON_WEIGHTS


@pytest.fixture
def known_rate(monkeypatch):
    """A machine of 1 GFLOP/s, which nobody has to measure, and on which no step is short enough to be timed."""
    monkeypatch.setattr(planning, "measured_rate", lambda *_arguments: 1e9)
    monkeypatch.setattr(timing, "LONGEST_PIECE", 0.0)


def test_costs_add_up(make_recipe, known_rate):
    recipe = make_recipe()
    planned = dry_run(recipe, fresh_network(recipe).eval(), device="cpu")
    costs = [entry["pflop"] for entry in (*planned["runs"], *planned["evaluations"])]
    assert planned["total"]["pflop"] == pytest.approx(sum(costs))
    assert planned["total"]["seconds"] == pytest.approx(planned["total"]["pflop"] * 1e6)
    train = planned["runs"][0]
    assert (train["images"], train["steps"], train["epochs"]) == (1038, 15, 3)  # 80 % of 1297, five batches of 256
    assert [(entry["protocol"], len(entry["runs"])) for entry in planned["evaluations"]] == [
        ("pgd-3@2", 3),
        ("crown-ibp@1", 3),
    ]


def test_a_single_image_that_is_left_over_makes_no_step_of_its_own(make_recipe, known_rate):
    """1038 = 17 · 61 + 1 images: the last one joins the minibatch before it, as in training."""
    train = {"epochs": 3, "batch_size": 61, "lr": 0.1}
    planned = dry_run(make_recipe(train=train), fresh_network(make_recipe()).eval(), device="cpu")
    assert planned["runs"][0]["steps"] == 3 * 17


def test_the_rate_of_a_machine_is_positive_and_timed_on_the_network_itself(monkeypatch):
    monkeypatch.setattr(costs, "MEASURED_SECONDS", 0.01)
    network = build_model("cifar_model", (1, 8, 8), 10).eval()
    sizes = sizes_of(network, (1, 8, 8), 10)
    assert costs.measured_rate(network, (1, 8, 8), sizes, torch.device("cpu")) > 1e6


def test_a_short_step_costs_what_it_was_timed_at_and_a_long_one_its_operations(make_recipe, known_rate, monkeypatch):
    """15 steps of 256 images, the last of an epoch of 1038 is of 14: at 0.5 s each 7.5 s, whatever the operations."""
    asked = []
    monkeypatch.setattr(timing, "step_seconds", lambda trainee, *_arguments: asked.append(trainee) or 0.5)
    recipe = make_recipe(evaluate=[])
    network = fresh_network(recipe).eval()
    long = dry_run(recipe, network, device="cpu")["runs"]
    assert not asked
    monkeypatch.setattr(timing, "LONGEST_PIECE", 1e9)
    short = dry_run(recipe, network, device="cpu")["runs"]
    assert [run["seconds"] for run in short] == [0.5 * run["steps"] for run in short]
    assert short[0]["seconds"] == 7.5
    assert [run["pflop"] for run in short] == [run["pflop"] for run in long]
    assert [(one.phase, one.density, one.images) for one in asked] == [
        ("train", 1.0, 256),
        ("prune", 0.1, 256),
        ("finetune", 0.1, 256),
    ], "once a section: the LWM twins train as finetune does"


@pytest.fixture
def timed_once(monkeypatch):
    """Work is called twice: to warm up, and once on the clock."""
    monkeypatch.setattr(timing, "ENOUGH", 0.0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("phase", ["train", "prune"])
def test_a_step_of_every_objective_can_be_timed_and_leaves_the_network_alone(timed_once, make_recipe, name, phase):
    own = {"stability": {"sigma": 0.1}, "natural": {}, "mixtrain": {"samples": 2}, "sabr": {"box": 0.5}}
    own |= {key: {"ibp_weight": 0.5} for key in ("mtl-ibp", "cc-ibp", "exp-ibp")}
    own |= {key: {"sigma": 0.1} for key in ("consistency", "macer", "smoothmix", "cat-rs")}
    own["smoothadv"] = {"sigma": 0.1, "epsilon": "0.5"}
    radius = {"epsilon": "8/255"} if {"epsilon", "norm"} & set(OBJECTIVES[name].settings.model_fields) else {}
    objective = {"name": name, **radius, **own.get(name, {})}
    recipe = make_recipe(objective=objective, evaluate=[])
    network = fresh_network(recipe).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainee = timing.Trainee(
        network, phase, getattr(recipe, phase), recipe.objective, 0.1 if phase == "prune" else 1, 8
    )
    assert timing.step_seconds(trainee, (1, 8, 8), 10, torch.device("cpu")) > 0
    assert not network.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_steps_of_a_ramp_are_timed_at_half_the_radius_for_their_share(make_recipe, monkeypatch):
    """Two of three epochs are full, one ramps: 1/3 of the steps at half the radius. 2/3 · 6 s + 1/3 · 3 s = 5 s."""
    recipe = make_recipe(
        objective={"name": "crown-ibp", "epsilon": "8/255"},
        train={"epochs": 3, "lr": 0.1, "epsilon_ramp_epochs": 2},
        evaluate=[],
    )
    ramps = []
    loss = OBJECTIVES["crown-ibp"].loss

    def noted(network, x, y, settings, step):
        ramps.append((step.ramp, step.epsilon * 255))
        return loss(network, x, y, settings, step)

    monkeypatch.setitem(OBJECTIVES, "crown-ibp", replace(OBJECTIVES["crown-ibp"], loss=noted))
    seconds = {1.0: 6.0, 0.5: 3.0}
    monkeypatch.setattr(timing, "seconds_of", lambda work, _device: (work(1), seconds[ramps[-1][0]])[1])
    trainee = timing.Trainee(fresh_network(recipe).eval(), "train", recipe.train, recipe.objective, 1.0, 4)
    assert timing.step_seconds(trainee, (1, 8, 8), 10, torch.device("cpu")) == pytest.approx(5)
    assert ramps == [(1.0, pytest.approx(8)), (0.5, pytest.approx(4))]


@pytest.mark.parametrize("kind", sorted({kind for kind, one in EVALUATORS.items() if one.passes} - {"corruptions"}))
def test_a_piece_of_every_evaluation_takes_the_passes_it_says(make_recipe, kind):
    radius = {"epsilon": "8/255"} if "epsilon" in EVALUATORS[kind].conditions() else {}
    settings = parse_settings({"kind": kind, **radius})
    network = fresh_network(make_recipe()).eval()
    images = []
    # A clean pass, a start and ten steps of PGD; 100 + 2000 draws. No bound passes a network with a hook.
    forward = {"clean": 100, "smoothing": 2100, "pgd": 1200, "autoattack": 1200}
    if EVALUATORS[kind].claims != "lower":
        network[-1].register_forward_hook(lambda _layer, inputs, _output: images.append(len(inputs[0])))
    piece = timing.piece_of(network, settings, (1, 8, 8), Sizes(1.0, 1.0, 10))
    piece.work(1)
    labels = 1 if kind == "smoothing" else 100  # the predictions are taken for them
    assert bool(images) == (EVALUATORS[kind].claims != "lower")
    # Images that break are attacked no further, and gradients count beside forward passes.
    assert not images or 0 < sum(images) - labels <= piece.passes
    assert kind not in forward or sum(images) - labels == forward[kind]
    # Of PGD, each of ten steps counts twice for its gradient; boxes are two passes, and CROWN goes back from 9 rivals.
    expected = {"clean": 100, "ibp": 300, "crown-ibp": 1200, "smoothing": 2100, "pgd": 2100, "autoattack": 2100}
    assert kind not in expected or piece.passes == expected[kind]


def test_seconds_are_a_mean_over_calls_after_one_to_warm_up(monkeypatch):
    """A clock that only work moves: 10 s for the first call, then 0.1 s each, until 0.3 s have passed."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    calls = []

    def work(number):
        calls.append(number)
        clock[0] += 0.125 if number else 10.0

    assert timing.seconds_of(work, torch.device("cpu")) == 0.125
    assert calls == [0, 1, 2, 3]


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
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    result = CliRunner().invoke(main, ["pipeline", "--config", "digits-trades", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "lwm-0.01" in result.output
    assert "PFLOP" in result.output
    assert not list(tmp_path.iterdir())
    as_json = CliRunner().invoke(main, ["pipeline", "--config", "digits-trades", "--dry-run", "--json"])
    assert json.loads(as_json.output)["recipe"]["name"] == "digits-trades"
