"""The commands train, prune, finetune and pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hydrabench.cli.common import (
    REF_HELP,
    density_override,
    folder_options,
    foreign_options,
    is_main_process,
    machine_options,
    model_options,
    print_summary,
    read_network,
    read_recipe,
    read_training_options,
    recipe_options,
    training_options,
)
from hydrabench.cli.reporting import show_report
from hydrabench.cli.values import CHECKPOINT

if TYPE_CHECKING:
    from hydrabench.recipes import Recipe
    from hydrabench.workflows.evaluation.request import ModelRequest


def _refuse(
    given: dict[str, Any], ref: str | None, folder: Path, *, resume: bool, needed: bool = True
) -> tuple[dict[str, Any], ModelRequest | None]:
    """Refuse what can be refused before torch is imported; return what `read_network` does."""
    from hydrabench.workflows import refusals

    described, request = read_network(given, ref, needed=needed)
    refusals.refuse_machine(given, "training")
    refusals.refuse_folder(folder, resume=resume)
    if request is not None:
        refusals.refuse_model(request)
    elif ref is not None:
        refusals.header_of(ref)
    return described, request


@click.command(short_help="Train a network, from scratch or from --ckpt.")
@recipe_options
@click.option("--ckpt", "ref", type=CHECKPOINT, help=f"Start from its weights instead of fresh ones. {REF_HELP}")
@model_options
@foreign_options
@folder_options
@training_options
@machine_options
def train(
    config: str,
    overrides: tuple[str, ...],
    ref: str | None,
    out: Path | None,
    resume: bool,
    **given: Any,
) -> None:
    """Train a network, from scratch or from --ckpt: a dense one, or with train.density below 1 a sparse one.

    Under torchrun the processes share every batch of batch_size images, and make the same steps as one would.

    \b
    Examples
      hydrabench train --config digits-trades --set train.epochs=5 --out runs/dense
      hydrabench train --config digits-trades --ckpt runs/dense --out runs/more
      hydrabench train --config hydra-cifar10-crown-ibp-cifar_model --micro-batch 32 --out runs/small-gpu
      hydrabench train --config digits-trades --set model.arch=mynet.py:build --out runs/mine
      torchrun --nproc-per-node 2 -m hydrabench train --config digits-trades --out runs/two
    """
    recipe = read_recipe(config, overrides)
    from hydrabench.workflows.training.run_folders import default_folder

    folder = out or default_folder(recipe, "train")
    described, request = _refuse(given, ref, folder, resume=resume, needed=False)
    from hydrabench.workflows.training import commands as training

    options = read_training_options(given)
    summary = training.train(recipe, folder, options=options, ref=ref or request, described=described, resume=resume)
    print_summary(summary, given["as_json"])


@click.command(short_help="Learn which weights to keep, under the robust loss.")
@recipe_options
@click.option("--ckpt", "ref", type=CHECKPOINT, help=REF_HELP)
@model_options
@click.option("--density", type=float, help="Fraction of weights kept, in (0, 1]; 0.01 prunes 99%.")
@foreign_options
@folder_options
@training_options
@machine_options
def prune(
    config: str,
    overrides: tuple[str, ...],
    ref: str | None,
    density: float | None,
    out: Path | None,
    resume: bool,
    **given: Any,
) -> None:
    """Learn which weights to keep, under the recipe's robust loss (HYDRA).

    \b
    Examples
      hydrabench prune --config digits-trades --ckpt runs/dense --density 0.05 --out runs/pruned
      hydrabench prune --config digits-trades --model mynet.py:build --weights mynet.pt --density 0.05
      hydrabench prune --config digits-trades --model net.onnx --density 0.1 --out runs/pruned
    """
    recipe = read_recipe(config, (*overrides, *density_override("prune", density)))
    from hydrabench.workflows.training.run_folders import default_folder

    folder = out or default_folder(recipe, "prune")
    described, request = _refuse(given, ref, folder, resume=resume)
    from hydrabench.workflows.training import commands as training

    source, options = request or str(ref), read_training_options(given)
    summary = training.prune(recipe, source, folder, options=options, described=described, resume=resume)
    print_summary(summary, given["as_json"])


@click.command()
@recipe_options
@click.option("--ckpt", "ref", type=CHECKPOINT, help=REF_HELP)
@model_options
@click.option("--lwm", is_flag=True, help="Baseline: keep the weights of largest magnitude; needs --density.")
@click.option("--density", type=float, help="With --lwm: fraction of weights kept, in (0, 1].")
@foreign_options
@folder_options
@training_options
@machine_options
def finetune(
    config: str,
    overrides: tuple[str, ...],
    ref: str | None,
    lwm: bool,
    density: float | None,
    out: Path | None,
    resume: bool,
    **given: Any,
) -> None:
    """Train the weights that a pruned checkpoint keeps.

    \b
    Examples
      hydrabench finetune --config digits-trades --ckpt runs/pruned --out runs/final
      hydrabench finetune --config digits-trades --ckpt runs/dense --lwm --density 0.05 --out runs/lwm
      hydrabench finetune --config digits-trades --model mynet.py:build --weights pruned.pt --out runs/tuned
    """
    recipe = read_recipe(config, (*overrides, *density_override("finetune", density)))
    from hydrabench.workflows.training.run_folders import default_folder

    folder = out or default_folder(recipe, "finetune", ref=str(ref or given["model"]), lwm=lwm)
    described, request = _refuse(given, ref, folder, resume=resume)
    from hydrabench.workflows.training import commands as training

    source, options = request or str(ref), read_training_options(given)
    summary = training.finetune(recipe, source, folder, options=options, lwm=lwm, described=described, resume=resume)
    print_summary(summary, given["as_json"])


@click.command(short_help="Run a whole recipe, from training to the report.")
@recipe_options
@click.option(
    "--dry-run", is_flag=True, help="Print the resolved recipe, the steps and about what they cost; run none."
)
@folder_options
@training_options
@machine_options
def pipeline(
    config: str, overrides: tuple[str, ...], dry_run: bool, out: Path | None, resume: bool, **given: Any
) -> None:
    """Run a whole recipe: train, prune, finetune, the LWM twins, every evaluation, and the report.

    \b
    Examples
      hydrabench pipeline --config digits-crown-ibp --out runs/digits
      hydrabench pipeline --config digits-crown-ibp --out runs/digits --resume
      hydrabench pipeline --config digits-crown-ibp --dry-run
      torchrun --nproc-per-node 2 -m hydrabench pipeline --config digits-crown-ibp --out runs/two
    """
    recipe = read_recipe(config, overrides)
    from hydrabench.workflows import refusals

    refusals.refuse_machine(given, "training")
    if dry_run:
        _show_plan(recipe, given)
        return
    folder = out or Path("runs") / recipe.name
    refusals.require_place(folder)
    refusals.refuse_files(folder, resume=resume)
    from hydrabench.workflows.pipeline import run_pipeline

    leaderboard = run_pipeline(recipe, folder, options=read_training_options(given), resume=resume)
    if is_main_process():
        show_report(leaderboard, folder / "report", given["as_json"])


def _show_plan(recipe: Recipe, given: dict[str, Any]) -> None:
    """The resolved recipe, its steps and their cost; nothing is read or written."""
    from hydrabench.workflows.planning.plan import dry_run, plan_text
    from hydrabench.workflows.training.commands import fresh_network

    planned = dry_run(recipe, fresh_network(recipe).eval(), device=given["device"])
    click.echo(json.dumps(planned, indent=2) if given["as_json"] else plan_text(planned))
