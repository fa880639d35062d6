"""The command `pipeline`: one recipe from training to a leaderboard, every step resumable.

OUT/train, OUT/prune-K, OUT/finetune-K, OUT/lwm-K      one training run each
OUT/evaluations/CHECKPOINT/PROTOCOL                    one ledger each
OUT/report                                             the leaderboard

Under torchrun all processes work on each step together; folders are read and written by the main one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydrabench.data import ImageSource, first_images, load_test_images
from hydrabench.data.forms import is_own
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings
from hydrabench.models.own_code import is_code
from hydrabench.recipes import Recipe
from hydrabench.reporting import Leaderboard
from hydrabench.runtime import World, pick_device
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.guards import on_images
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.run_folders import run_name
from hydrabench.workflows.planning.plan import PlannedRun, plan
from hydrabench.workflows.progress import say
from hydrabench.workflows.refusals import refuse_files
from hydrabench.workflows.reporting import REPORT_FORMATS, write_report
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands as training
from hydrabench.workflows.training.phase import check_phase
from hydrabench.workflows.writer import one_writer


def run_pipeline(recipe: Recipe, out: Path, *, options: RunOptions, resume: bool = False) -> Leaderboard:
    """Train, prune, finetune (and the LWM twins), evaluate every finished checkpoint, and report.

    Args:
        recipe: needs the sections for what its `pipeline:` asks for (see `plan`), and `evaluate:` entries.
        out: folder of all runs; must be new unless `resume`.
    Raises: before anything runs, ConfigError if the recipe lacks a section, LedgerError if `out` is in use,
        UnsupportedLayerError if a bound, of an objective or an evaluation, cannot pass the network, DataError if
        there are too few test images.
    """
    world = World()
    steps = plan(recipe)
    world.on_main(lambda: _check(recipe, steps, out, options, world, resume=resume))
    with one_writer(out, world):
        return _run(recipe, steps, out, options, world)


def _run(recipe: Recipe, steps: Sequence[PlannedRun], out: Path, options: RunOptions, world: World) -> Leaderboard:
    finished = []
    for number, step in enumerate(steps, start=1):
        if world.is_main:
            say(f"[{number}/{len(steps)}] {step.name}")
        _train_step(recipe, step, out, options)
        if step.evaluated:
            finished.append(step.name)
    for name in finished:
        for settings in recipe.evaluate:
            arch = recipe.network().arch
            described = {"model": arch} if is_code(arch) else {}
            label = f"{recipe.name}/{name}"
            subject = open_subject(str(out / name), options=options, name=label, described=described)
            if is_own(recipe.data.name):
                subject = on_images(subject, _test_images(recipe, options))
            folder = out / "evaluations" / name / run_name(settings)
            computing = replace(options, computing=_computing(settings, options))
            evaluate(subject, settings, folder, options=computing, n=recipe.evaluate_images, resume=True)
    runs = [out / "evaluations", *(out / step.name for step in steps)]
    return world.on_main(lambda: write_report(runs, out / "report", REPORT_FORMATS))


def _computing(settings: EvaluationSettings, options: RunOptions) -> dict[str, Any]:
    """The options of a training that an evaluator has, too: what it computes with, which changes no protocol."""
    known = {option.name for option in EVALUATORS[settings.kind].options if option.role == "computing"}
    return {name: True for name in ("compile", "channels_last") if name in known and getattr(options, name)}


def _train_step(recipe: Recipe, step: PlannedRun, out: Path, options: RunOptions) -> None:
    folder, source = out / step.name, str(out / (step.source or ""))
    match step.kind:
        case "train":
            training.train(recipe, folder, options=options, resume=True)
        case "prune":
            training.prune(_with_density(recipe, "prune", step.density), source, folder, options=options, resume=True)
        case "finetune":
            training.finetune(recipe, source, folder, options=options, resume=True)
        case "lwm":
            kept = _with_density(recipe, "finetune", step.density)
            training.finetune(kept, source, folder, options=options, lwm=True, resume=True)


def _with_density(recipe: Recipe, section: str, density: float) -> Recipe:
    """The recipe with `density`, and the scope of its `prune:` section, in its `prune:` or `finetune:` section.

    Magnitude pruning learns no rates; beside a learned budget it keeps as much of every layer.
    """
    scope = recipe.prune.scope if recipe.prune else "layer"
    scope = "layer" if (section, scope) == ("finetune", "learned") else scope
    phase = getattr(recipe, section).model_copy(update={"density": density, "scope": scope})
    return recipe.model_copy(update={section: phase})


def _check(
    recipe: Recipe, steps: Sequence[PlannedRun], out: Path, options: RunOptions, world: World, *, resume: bool
) -> None:
    """Check before the first run what would otherwise fail hours later."""
    if not recipe.evaluate:
        raise ConfigError(f"recipe {recipe.name} has no `evaluate:` entries; a pipeline ends in a leaderboard")
    refuse_files(out, resume=resume)
    network, device = training.fresh_network(recipe).eval(), pick_device(options.device)
    for section in dict.fromkeys(step.section for step in steps):
        check_phase(recipe, section, network, device=device, options=options, world=world)
    for settings in recipe.evaluate:
        EVALUATORS[settings.kind].require(network, settings)
    first_images(_test_images(recipe, options), recipe.evaluate_images)


def _test_images(recipe: Recipe, options: RunOptions) -> ImageSource:
    return load_test_images(recipe.data, options.data_dir, download=options.download)
