"""The commands train, prune, finetune and pipeline as functions.

A module that is handed over stays as it is; a copy is trained, and a checkpoint of it opens again with a module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from hydrabench.api.networks import Network, images_of, reference, subject_of_module
from hydrabench.api.reports import Report
from hydrabench.api.runs import TrainingRun
from hydrabench.checkpoints.header import CodeOfOthers
from hydrabench.checkpoints.own_code import HANDED, UsedCode
from hydrabench.data import given_images
from hydrabench.recipes import Recipe, load_recipe
from hydrabench.workflows.evaluation.external import baked_copy
from hydrabench.workflows.evaluation.opening import as_checkpoint
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training import commands
from hydrabench.workflows.training.run_folders import default_folder

RecipeLike: TypeAlias = "str | Path | Mapping[str, Any] | Recipe"


def train(
    recipe: RecipeLike,
    network: Network | None = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    data_dir: str | Path | None = None,
    download: bool = False,
    **computing: Any,
) -> TrainingRun:
    """Train a network, from scratch or from the weights that it has.

    Args:
        recipe: a YAML file, the name of one that comes with hydrabench, or its values: {"base": "digits-trades",
            "train": {"epochs": 3}} changes one key of a recipe. With a module it needs no `model:`, and with `data`
            no `data.name`.
        network: the module, checkpoint, run or zoo id to start from; None: fresh weights of the recipe's seed. A module
            maps images (B, C, H, W) in [0, 1] to logits (B, K); it stays as it is, a copy is trained.
        data: the training images, of which data.validation_fraction is held out: a registered name, (images, labels),
            or a torch Dataset, see `data.given_images`; None: the recipe's data set.
        out: the run folder; None: one of its own under runs/. resume: go on with what it holds.
        device, data_dir, download: as for `attack`.
        computing: how to compute, see `workflows.run_options.RunOptions`: precision, compile, micro_batch, ... .
    Raises: HydrabenchError, in one line, for whatever is not allowed, before anything is written.
    """
    work = _work(recipe, network, data, _options(device, data_dir, download, computing))
    folder = Path(out) if out else default_folder(work.recipe, "train")
    commands.train(work.recipe, folder, options=work.options, ref=work.source, described=work.described, resume=resume)
    return TrainingRun(folder, like=work.like)


def prune(
    recipe: RecipeLike,
    network: Network,
    data: Any = None,
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
        network: the module, checkpoint, run or zoo id to start from.
        density: fraction of weights kept, in (0, 1], or one for each layer by name; None: the recipe's.
        The other arguments are those of `train`.
    Returns: the run; its `module` is the pruned network.
    Raises: as `train`.
    """
    work = _work(recipe, network, data, _options(device, data_dir, download, computing), _of("prune", density))
    folder = Path(out) if out else default_folder(work.recipe, "prune")
    commands.prune(work.recipe, work.source, folder, options=work.options, described=work.described, resume=resume)
    return TrainingRun(folder, like=work.like)


def finetune(
    recipe: RecipeLike,
    network: Network,
    data: Any = None,
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
        network: the pruned module (which keeps the weights that are not zero, however they were chosen), checkpoint,
            run or zoo id; with `lwm` any.
        lwm: keep the weights of largest magnitude instead, a fraction `density` of them, in (0, 1].
        The other arguments are those of `train`.
    Raises: as `train`.
    """
    options = _options(device, data_dir, download, computing)
    work = _work(recipe, network, data, options, _of("finetune", density))
    folder = Path(out) if out else default_folder(work.recipe, "finetune", ref=str(work.source), lwm=lwm)
    commands.finetune(
        work.recipe, work.source, folder, options=work.options, lwm=lwm, described=work.described, resume=resume
    )
    return TrainingRun(folder, like=work.like)


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


@dataclass(frozen=True)
class _Work:
    """The work of a phase.

    source: where it starts, as the workflows take it. described: with what a source that is a checkpoint opens.
    like: a module like the network's, for a network that came as a module.
    """

    recipe: Recipe
    options: RunOptions
    source: Any = None
    described: Mapping[str, Any] = field(default_factory=dict)
    like: nn.Module | None = None


def _work(
    recipe: RecipeLike, network: Network | None, data: Any, options: RunOptions, overrides: Sequence[str] = ()
) -> _Work:
    """Read a recipe for a network and images, which take the place of what it says of them."""
    chosen = list(overrides)
    if isinstance(network, TrainingRun) and network.like is not None:
        chosen.append(f"model={json.dumps(network.header['recipe']['model'])}")
    if isinstance(data, str):
        chosen.append(f"data.name={data}")
    elif data is not None:
        images = replace(given_images(data), split="train")
        options = replace(options, images=images)
        chosen.append(f"data.name={images.name}")
    read = _recipe(recipe, chosen)
    if not isinstance(network, nn.Module):
        like = network.like if isinstance(network, TrainingRun) else None
        source = None if network is None else reference(network)
        return _Work(read, options, source, {} if like is None else {"model": like}, like)
    return _of_module(read, network, options)


def _of_module(recipe: Recipe, module: nn.Module, options: RunOptions) -> _Work:
    """Make a checkpoint of a module, after the checks on the first training images."""
    on_cpu = replace(options, device="cpu")
    images = options.images or images_of(recipe.data.name, on_cpu, split="train")
    subject = subject_of_module(module, images, on_cpu)
    if options.images is not None:  # which say of their classes only the highest label
        classes = subject.checkpoint.header.num_classes
        options = replace(options, images=replace(options.images, num_classes=classes))
    source = as_checkpoint(subject, f"{HANDED}{type(module).__name__}", UsedCode(CodeOfOthers()))
    return _Work(recipe, options, source, like=baked_copy(module))


def _recipe(recipe: RecipeLike, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with other values for some of its keys."""
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        recipe = recipe.model_dump(mode="json", exclude_none=True)
    return load_recipe(recipe, overrides)


def _of(section: str, density: object) -> list[str]:
    """The override of a section's density."""
    return [f"{section}.density={density!r}"] if density is not None else []


def _options(device: str, data_dir: str | Path | None, download: bool, computing: Mapping[str, Any]) -> RunOptions:
    return RunOptions(device, Path(data_dir) if data_dir else None, download, **computing)
