"""The plan of a pipeline: its runs, what each starts from, and their estimated costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from torch import nn

from hydrabench.data import DATASETS, load_images, load_test_images
from hydrabench.data.forms import is_own
from hydrabench.data.loaders import minibatch_sizes
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS, Sizes
from hydrabench.evaluators.blocks import duration
from hydrabench.objectives import OBJECTIVES, Workload
from hydrabench.recipes import PhaseRecipe, Recipe, SectionName
from hydrabench.runtime import pick_device
from hydrabench.workflows.planning import timing
from hydrabench.workflows.planning.costs import (
    measured_rate,
    sizes_of,
)


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a pipeline. source: the run it starts from. density: the fraction of weights it keeps."""

    name: str
    kind: Literal["train", "prune", "finetune", "lwm"]
    source: str | None
    density: float
    evaluated: bool

    @property
    def section(self) -> SectionName:
        """The section of the recipe that it follows."""
        return "finetune" if self.kind == "lwm" else self.kind


def plan(recipe: Recipe) -> list[PlannedRun]:
    """The training runs of a pipeline in order; without a `finetune:` section, the pruned networks are evaluated.

    Raises: ConfigError if the recipe lacks a section for what its `pipeline:` asks for.
    """
    _require_sections(recipe)
    runs = [PlannedRun("train", "train", None, 1.0, evaluated=True)]
    finetunes = recipe.finetune is not None
    for density in recipe.pipeline.densities:
        runs.append(PlannedRun(f"prune-{density:g}", "prune", "train", density, evaluated=not finetunes))
        if finetunes:
            runs.append(PlannedRun(f"finetune-{density:g}", "finetune", f"prune-{density:g}", density, evaluated=True))
        if recipe.pipeline.lwm:
            runs.append(PlannedRun(f"lwm-{density:g}", "lwm", "train", density, evaluated=True))
    return runs


def _require_sections(recipe: Recipe) -> None:
    wanted, name = recipe.pipeline, recipe.name
    if recipe.train is None:
        raise ConfigError(f"recipe {name} has no `train:` section; add one with epochs and lr")
    if not wanted.densities:
        return
    if recipe.prune is None:
        raise ConfigError(f"recipe {name} needs a `prune:` section for its pipeline.densities")
    if wanted.lwm and recipe.finetune is None:
        raise ConfigError(
            f"recipe {name} needs a `finetune:` section for its LWM twins; add one, or write `lwm: false` under "
            "`pipeline:` to evaluate the pruned networks as they are"
        )
    if isinstance(recipe.prune.density, dict):
        raise ConfigError(
            f"recipe {name} has densities by layer, which its pipeline.densities would override; write "
            "`densities: []` under `pipeline:` and use `hydrabench prune`, which follows prune.density"
        )


def dry_run(recipe: Recipe, network: nn.Module, *, device: str) -> dict[str, Any]:
    """Return what `pipeline` would do with a recipe, and about how much it costs on a device.

    Args:
        network: the recipe's, in eval mode; it is timed for some seconds.
        device: as for `pick_device`.
    Returns: `recipe`, resolved; `runs`, in order; `evaluations`, each of several runs; `total`; and
        `flops_per_second` of forward passes here. `passes` are forward passes for each image; `seconds` counts
        optimizer steps and pieces of evaluations as they were timed, or if they are longer than `LONGEST_PIECE` of
        `timing` their operations at the speed of forward passes; without data loading and validation, for an attack
        as if every image resisted to the end. Costs are None where they depend on the weights.
    """
    images = _images_of(recipe)
    sizes = sizes_of(network, images.shape, images.num_classes)
    rate = measured_rate(network, images.shape, sizes, pick_device(device))
    costs_here = _Costs(recipe, network, pick_device(device), images, sizes, rate)
    steps = plan(recipe)
    runs = [costs_here.run(step) for step in steps]
    evaluated = [step.name for step in steps if step.evaluated]
    evaluations = [costs_here.evaluation(evaluated, settings) for settings in recipe.evaluate]
    costs = [entry for entry in (*runs, *evaluations) if entry["pflop"] is not None]
    return {
        "recipe": recipe.model_dump(mode="json"),
        "runs": runs,
        "evaluations": evaluations,
        "total": {key: sum(entry[key] for entry in costs) for key in ("pflop", "seconds")},
        "not_estimated": sorted({entry["protocol"] for entry in evaluations if entry["pflop"] is None}),
        "flops_per_second": rate,
        "device": str(pick_device(device)),
    }


@dataclass(frozen=True)
class _Images:
    """The images of a recipe. shape: (C, H, W). train, test: how many there are of each split."""

    shape: tuple[int, int, int]
    num_classes: int
    train: int
    test: int


def _images_of(recipe: Recipe) -> _Images:
    """Return what is known of a recipe's data set; for that, files of the user's own are read."""
    if not is_own(recipe.data.name):
        known = lookup("data set", DATASETS, recipe.data.name)
        return _Images(known.shape, known.num_classes, known.train, known.test)
    own = load_images(recipe.data.name, "train")
    return _Images(own.shape, own.num_classes, len(own), len(load_test_images(recipe.data)) if recipe.evaluate else 0)


class _Costs:
    """The costs of a recipe on a device, run by run."""

    def __init__(
        self, recipe: Recipe, network: nn.Module, device: torch.device, images: _Images, sizes: Sizes, rate: float
    ) -> None:
        self.recipe, self.sizes, self.rate, self.device = recipe, sizes, rate, device
        self.images, self.shape = images, images.shape
        self.network = copy.deepcopy(network).to(device)
        self.timed: dict[str, float] = {}  # seconds of an optimizer step, by section

    def run(self, step: PlannedRun) -> dict[str, Any]:
        """A training run and what it costs."""
        phase: PhaseRecipe = getattr(self.recipe, step.section)
        objective = self.recipe.objective_of(step.section)
        images = _training_images(self.recipe, self.images.train)
        both = 2 if self.recipe.data.pseudo_labels else 1  # a batch holds as many pseudo-labelled images as labelled
        ramp = (phase.epsilon_ramp_epochs - 1) / phase.epochs
        passes = OBJECTIVES[objective.name].passes(objective, self._workload(both * phase.batch_size, ramp))
        per_epoch = len(minibatch_sizes(images, phase.batch_size))
        steps = phase.epochs * per_epoch * OBJECTIVES[objective.name].repeats(objective)
        costs = self._cost(passes, phase.epochs * both * images)
        if costs["seconds"] <= steps * timing.LONGEST_PIECE:
            costs["seconds"] = steps * self._step_seconds(step, both * phase.batch_size)
        return {
            "name": step.name,
            "source": step.source,
            "density": step.density,
            "objective": objective.name,
            "selection": OBJECTIVES[objective.name].metric,
            "epochs": phase.epochs,
            "images": both * images,
            "steps": steps,
            **costs,
        }

    def evaluation(self, runs: list[str], settings: Any) -> dict[str, Any]:
        """An evaluation of several runs and what it costs."""
        every = self.images.test
        images = min(self.recipe.evaluate_images or every, every)
        entry = {"protocol": settings.protocol, "runs": runs, "images": images}
        passes = EVALUATORS[settings.kind].passes
        if passes is None:
            return {**entry, "passes": None, "pflop": None, "seconds": None}
        costs = self._cost(passes(settings, self.sizes), len(runs) * images)
        piece = timing.piece_of(self.network, settings, self.shape, self.sizes)
        if piece.passes * self.sizes.flops <= timing.LONGEST_PIECE * self.rate:
            seconds = timing.seconds_of(piece.work, self.device) / piece.passes
            costs["seconds"] = seconds * costs["passes"] * len(runs) * images
        return {**entry, **costs}

    def _step_seconds(self, step: PlannedRun, images: int) -> float:
        """Return the seconds of one optimizer step of a section; they do not depend on the density."""
        section = step.section
        if section not in self.timed:
            phase, objective = getattr(self.recipe, section), self.recipe.objective_of(section)
            trainee = timing.Trainee(self.network, section, phase, objective, step.density, images)
            self.timed[section] = timing.step_seconds(trainee, self.shape, self.sizes.classes, self.device)
        return self.timed[section]

    def _workload(self, batch: int, ramp: float) -> Workload:
        return Workload(batch, ramp, self.sizes.classes, self.sizes.symbolic)

    def _cost(self, passes: float, images: int) -> dict[str, float]:
        flops = passes * images * self.sizes.flops
        return {"passes": passes, "pflop": flops / 1e15, "seconds": flops / self.rate}


def _training_images(recipe: Recipe, every: int) -> int:
    """Return how many of `every` labelled image are trained on: those not held out, or a fraction of them."""
    return round(recipe.data.fraction * (every - round(recipe.data.validation_fraction * every)))


def plan_text(planned: dict[str, Any]) -> str:
    """Render what `dry_run` returned: the recipe as YAML for `--config`, and two tables."""
    recipe = yaml.safe_dump(planned["recipe"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    lines = ["# recipe, resolved", recipe.rstrip(), "", "# runs"]
    lines.append(f"{'run':<16}{'from':<16}{'objective':<12}{'epochs':>6}{'steps':>10}{'passes/image':>14}{COSTS}")
    for run in planned["runs"]:
        lines.append(
            f"{run['name']:<16}{run['source'] or '-':<16}{run['objective']:<12}{run['epochs']:>6}{run['steps']:>10,}"
            f"{_costs(run)}"
        )
    lines += ["", "# evaluations", f"{'protocol':<44}{'runs':>6}{'images':>10}{'passes/image':>14}{COSTS}"]
    for entry in planned["evaluations"]:
        lines.append(f"{entry['protocol']:<44}{len(entry['runs']):>6}{entry['images']:>10,}{_costs(entry)}")
    total = planned["total"]
    speed = f"{planned['flops_per_second'] / 1e9:,.0f} GFLOP/s in forward passes, just measured"
    lines += [
        "",
        f"In all {total['pflop']:.3g} PFLOP, about {duration(total['seconds'])} on {planned['device']} ({speed}).",
    ]
    lines.append(
        "Short steps were timed on random images, long ones are counted at that speed. Attacks are counted to the end "
        "for every image; data loading and validation are not counted."
    )
    if planned["not_estimated"]:
        lines.append(f"Not estimated, because it depends on the weights: {', '.join(planned['not_estimated'])}.")
    return "\n".join(lines)


COSTS = f"{'PFLOP':>10}{'time':>10}"


def _costs(entry: dict[str, Any]) -> str:
    if entry["pflop"] is None:
        return f"{'?':>14}{'?':>10}{'?':>10}"
    return f"{entry['passes']:>14,.4g}{entry['pflop']:>10.3g}{duration(entry['seconds']):>10}"
