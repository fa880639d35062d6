"""The commands train, prune, finetune and pipeline as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hydrabench.api.networks import reference
from hydrabench.api.reports import Report
from hydrabench.api.runs import TrainingRun
from hydrabench.recipes import Recipe, load_recipe
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands
from hydrabench.workflows.training.run_folders import default_folder

RecipeLike: TypeAlias = "str | Path | Mapping[str, Any] | Recipe"
Source: TypeAlias = "str | Path | TrainingRun"


def train(
    recipe: RecipeLike,
    network: Source | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
    **computing: Any,
) -> TrainingRun:
    """Train a network, from scratch or from a checkpoint.

    Args:
        recipe: a YAML file, the name of one that comes with hydrabench, or its values: {"base": "digits-trades",
            "train": {"epochs": 3}} changes one key of a recipe.
        network: the checkpoint, run or zoo id to start from; None: fresh weights of the recipe's seed.
        out: the run folder; None: one of its own under runs/. resume: go on with what it holds.
        device, data_dir, download: as for `attack`.
        computing: how to compute, see `workflows.run_options.RunOptions`: precision, compile, micro_batch, ... .
    Raises: HydrabenchError, in one line, for whatever is not allowed, before anything is written.
    """
    chosen = _recipe(recipe)
    folder = Path(out) if out else default_folder(chosen, "train")
    ref = None if network is None else reference(network)
    commands.train(chosen, folder, options=_options(device, data_dir, download, computing), ref=ref, resume=resume)
    return TrainingRun(folder)


def prune(
    recipe: RecipeLike,
    network: Source,
    *,
    density: float | Mapping[str, float] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
    **computing: Any,
) -> TrainingRun:
    """Learn which weights to keep, under the recipe's robust loss (HYDRA).

    Args:
        network: the checkpoint, run or zoo id to start from.
        density: fraction of weights kept, in (0, 1], or one for each layer by name; None: the recipe's.
        The other arguments are those of `train`.
    Raises: as `train`.
    """
    chosen = _recipe(recipe, "prune", density)
    folder, ref = Path(out) if out else default_folder(chosen, "prune"), reference(network)
    commands.prune(chosen, ref, folder, options=_options(device, data_dir, download, computing), resume=resume)
    return TrainingRun(folder)


def finetune(
    recipe: RecipeLike,
    network: Source,
    *,
    lwm: bool = False,
    density: float | Mapping[str, float] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
    **computing: Any,
) -> TrainingRun:
    """Train the weights that a pruned checkpoint keeps.

    Args:
        network: the pruned checkpoint, run or zoo id; with `lwm` any.
        lwm: keep the weights of largest magnitude instead, a fraction `density` of them, in (0, 1].
        The other arguments are those of `train`.
    Raises: as `train`.
    """
    chosen = _recipe(recipe, "finetune", density)
    ref = reference(network)
    folder = Path(out) if out else default_folder(chosen, "finetune", ref=ref, lwm=lwm)
    options = _options(device, data_dir, download, computing)
    commands.finetune(chosen, ref, folder, options=options, lwm=lwm, resume=resume)
    return TrainingRun(folder)


def pipeline(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
    **computing: Any,
) -> Report:
    """Run a whole recipe: train, prune, finetune, the least-magnitude twins, every evaluation, and the report.

    Args: those of `train`; `out` is the folder of all its runs, runs/RECIPE if None.
    Returns: the report, which also lies in `out`/report.
    Raises: as `train`.
    """
    chosen = _recipe(recipe)
    folder = Path(out) if out else Path("runs") / chosen.name
    return Report(run_pipeline(chosen, folder, options=_options(device, data_dir, download, computing), resume=resume))


def _recipe(recipe: RecipeLike, section: str = "", density: object = None) -> Recipe:
    """Read a recipe, with another density in one of its sections if one is given."""
    if isinstance(recipe, Recipe):
        if density is None:
            return recipe
        recipe = recipe.model_dump(mode="json", exclude_none=True)
    return load_recipe(recipe, [f"{section}.density={density!r}"] if density is not None else [])


def _options(device: str, data_dir: str | Path | None, download: bool, computing: Mapping[str, Any]) -> RunOptions:
    return RunOptions(device, Path(data_dir) if data_dir else None, download, **computing)
