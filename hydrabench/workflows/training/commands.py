"""The commands `train`, `prune` and `finetune`: from a recipe and a source checkpoint to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hydrabench.checkpoints import Checkpoint
from hydrabench.config import Normalization
from hydrabench.data import DATASETS
from hydrabench.errors import CheckpointError, ConfigError, lookup
from hydrabench.masking import attach_masks, bake_masks, overall_density, score_masks
from hydrabench.models import build_model
from hydrabench.recipes import Recipe
from hydrabench.runtime import stream
from hydrabench.workflows.opening import NOTHING, open_expected
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.phase import Masks, Start, run_phase


def train(
    recipe: Recipe,
    out: Path,
    *,
    options: RunOptions,
    ref: str | None = None,
    described: Mapping[str, Any] = NOTHING,
    resume: bool = False,
) -> dict[str, Any]:
    """Train all weights, from scratch or from those of `ref`; writes `out/checkpoint.safetensors`, dense.

    From scratch, they start as the architecture has them, or with `train.initialization: ibp` so that the boxes of
    interval bounds keep their widths from layer to layer.

    With `train.density` below 1, the network is sparse: `train.scores` choose its masks before the first
    step, and they stay.
    Returns: the summary.
    Raises: CheckpointError if `ref` does not fit the recipe, or is pruned; ConfigError if its weights would be lost.
    """
    section = recipe.train
    if ref and section.initialization != "default":
        raise ConfigError(
            f"train.initialization {section.initialization} draws new weights, and those of {ref} would be lost; add "
            "--set train.initialization=default, or leave --ckpt out"
        )
    source = _open_source(recipe, ref, described) if ref else None
    if source and source.header.density < 1:
        raise CheckpointError(
            f"{ref} is pruned, and `train` would fill its zeros; use `hydrabench finetune` to keep them"
        )
    network = source.baked() if source else fresh_network(recipe)
    density = overall_density(network, section.density, section.scope)
    masks = Masks(section.density, section.scope, section.scores, section.rescale_weights)
    parent = source.sha256 if source else None
    start = Start(network, "train", "train", density, parent, masks if density < 1 else None)
    return run_phase(recipe, section, start, out, resume, options)


def fresh_network(recipe: Recipe) -> nn.Module:
    """Build the recipe's network for its data set, with the initial weights of its seed."""
    dataset = lookup("data set", DATASETS, recipe.data.name)
    return build_model(
        recipe.model.arch,
        dataset.shape,
        dataset.num_classes,
        normalization=_normalization(recipe.model.normalization),
        generator=stream(recipe.seed, "initial weights"),
    )


def prune(
    recipe: Recipe,
    ref: str,
    out: Path,
    *,
    options: RunOptions,
    described: Mapping[str, Any] = NOTHING,
    resume: bool = False,
) -> dict[str, Any]:
    """Learn which weights to keep, starting from `ref`; writes a checkpoint in the masked layout, and its dense twin.

    Raises: ConfigError if the recipe has no `prune:` section, no density is given, or it does not fit the
        layers.
    """
    if recipe.prune is None:
        raise ConfigError(f"recipe {recipe.name} has no `prune:` section; add one with epochs and lr")
    if recipe.prune.density is None:
        raise ConfigError("no density given: add --density 0.1 to keep a tenth of the weights of every layer")
    source = _open_source(recipe, ref, described)
    network = source.baked()
    section = recipe.prune
    density = overall_density(network, recipe.prune.density, section.scope)
    masks = Masks(recipe.prune.density, section.scope, section.scores)
    start = Start(network, "prune", "prune", density, source.sha256, masks)
    return run_phase(recipe, section, start, out, resume, options)


def finetune(
    recipe: Recipe,
    ref: str,
    out: Path,
    *,
    options: RunOptions,
    lwm: bool = False,
    described: Mapping[str, Any] = NOTHING,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the kept weights of a pruned checkpoint, or with `lwm` those of largest magnitude of any.

    Magnitudes are those of the scaled scores, with which pruning starts by default: layer by layer they rank as
    the weights do; under a global budget, a weight counts relative to its layer's largest and fan-in.
    Writes a checkpoint in the dense layout, the masks baked in, and its masked twin, which has their scores.
    Raises: ConfigError or CheckpointError if there is nothing that says which weights to keep.
    """
    if recipe.finetune is None:
        raise ConfigError(f"recipe {recipe.name} has no `finetune:` section; add one with epochs and lr")
    source = _open_source(recipe, ref, described)
    density = recipe.finetune.density
    if lwm and density is None:
        raise ConfigError("--lwm needs --density, the fraction of weights kept by magnitude, for example 0.1")
    if not lwm and density is not None and density != source.header.density:
        raise ConfigError(f"{ref} keeps {source.header.density} of its weights; --density belongs to --lwm")
    if not lwm and source.header.density == 1:
        raise CheckpointError(f"{ref} is not pruned; run `hydrabench prune` first, or add --lwm --density 0.1")
    network = source.network
    if lwm and density is not None:
        bake_masks(network)
        overall = overall_density(network, density, recipe.finetune.scope)
        attach_masks(network, density, scope=recipe.finetune.scope)
        start = Start(network, "finetune", "lwm", overall, source.sha256)
    else:
        if not score_masks(network):
            attach_masks(network, source.header.density, kept=source.header.kept)
        start = Start(network, "finetune", "finetune", source.header.density, source.sha256)
    return run_phase(recipe, recipe.finetune, start, out, resume, options)


def _open_source(recipe: Recipe, ref: str, described: Mapping[str, Any]) -> Checkpoint:
    """Load the checkpoint a phase starts from; what a file of others does not say is as in the recipe.

    Raises: CheckpointError if it is not of the recipe's network.
    """
    model = recipe.model
    expected = {"arch": model.arch, "dataset": recipe.data.name, "normalization": model.normalization or "none"}
    source = open_expected(ref, expected, **described)
    header = source.header
    if (header.arch, header.dataset) != (recipe.model.arch, recipe.data.name):
        raise CheckpointError(
            f"{ref} is a {header.arch} for {header.dataset}; recipe {recipe.name} wants a {recipe.model.arch} "
            f"for {recipe.data.name}"
        )
    if header.normalization != recipe.model.normalization:
        raise CheckpointError(
            f"{ref} normalises with {header.normalization}, recipe {recipe.name} with {recipe.model.normalization}"
        )
    return source


def _normalization(section: Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return (section.mean, section.std) if section else None
