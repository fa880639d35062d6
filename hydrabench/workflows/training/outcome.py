"""The outcome of a training phase: the checkpoint of its best epoch, and the summary."""

from __future__ import annotations

from typing import Any

from torch import nn

from hydrabench.checkpoints import Header, PluginFile, load_state, save_checkpoint, stored_state
from hydrabench.data import ImageSource
from hydrabench.ledger import RunFolder
from hydrabench.masking import bake_masks, kept_counts, score_masks
from hydrabench.models.own_code import short_spec
from hydrabench.plugins import loaded
from hydrabench.recipes import Recipe, sha256_of_values
from hydrabench.workflows.progress import say
from hydrabench.workflows.training.held_out import held_out_of
from hydrabench.workflows.training.loop import Trained
from hydrabench.workflows.training.resume import METRICS_FILE, STATE_FILE
from hydrabench.workflows.training.start import Start

CHECKPOINT_FILE = "checkpoint.safetensors"
OTHER_FILE = "checkpoint_{layout}.safetensors"


def conclude(run: RunFolder, recipe: Recipe, start: Start, trained: Trained, validation: ImageSource) -> dict[str, Any]:
    """Write the checkpoint of the best epoch and the summary; the state to resume from is not needed any more."""
    sha256, budgets = write_network(run, recipe, start, trained, validation)
    selection = trained.selection
    summary: dict[str, Any] = {
        "n": selection.images,
        "checkpoint_sha256": sha256,
        "selection": selection.model_dump(mode="json"),
        "metrics": {f"validation_{selection.metric}": {"value": selection.value}},
    }
    if budgets:
        kept, weights = (sum(layer[key] for layer in budgets.values()) for key in ("kept", "weights"))
        summary["density"] = {"global": kept / weights, "layers": budgets}
    if trained.micro_batch is not None:
        summary["micro_batch"] = trained.micro_batch
    run.finish(summary)
    (run.path / STATE_FILE).unlink(missing_ok=True)
    say(
        f"{run.path / CHECKPOINT_FILE}: epoch {selection.epoch}, {selection.metric} {selection.value:.3f} on "
        f"{selection.images} held-out images; history in {run.path / METRICS_FILE}"
    )
    return run.summary()


def write_network(
    run: RunFolder, recipe: Recipe, start: Start, trained: Trained, validation: ImageSource
) -> tuple[str, dict[str, dict[str, int]]]:
    """Write the checkpoint of the best epoch; return its SHA-256 and what the masks of its layers keep.

    A masked network is written in both layouts: with its scores and masks, and with pruned weights at zero. The one
    that the next step starts from is `CHECKPOINT_FILE`, the other lies beside it under its layout's name.
    """
    load_state(start.network, trained.tensors, "the best epoch")
    budgets = _budgets(start.network)
    counts = {name: layer["kept"] for name, layer in budgets.items()}
    even = not counts or counts == kept_counts(start.network, start.density)
    header = _header(recipe, start, trained, validation).model_copy(update={"kept": None if even else counts})
    if start.code:
        start.code.keep_in(run.path)
    hashes = {}
    for layout in ("masked", "dense") if budgets else ("dense",):  # in this order: masks are gone once they are baked
        if layout == "dense":
            bake_masks(start.network)
        name = CHECKPOINT_FILE if layout == header.layout else OTHER_FILE.format(layout=layout)
        described = header.model_copy(update={"layout": layout})
        hashes[layout] = save_checkpoint(run.path / name, stored_state(start.network), described)
    return hashes[header.layout], budgets


def _header(recipe: Recipe, start: Start, trained: Trained, validation: ImageSource) -> Header:
    """Return the header of the phase's checkpoint, but for the budgets of its layers."""
    return Header(
        layout="masked" if start.label == "prune" else "dense",
        phase=start.label,
        arch=short_spec(recipe.network().arch),
        dataset=recipe.data.name,
        shape=validation.shape,
        num_classes=validation.num_classes,
        normalization=recipe.network().normalization,
        density=start.density,
        objective=recipe.objective_of(start.section).plain(),
        recipe=recipe.name,
        recipe_sha256=sha256_of_values(recipe.of_phase(start.section)),
        seed=recipe.seed,
        selection=trained.selection,
        parent=start.parent,
        plugins=tuple(PluginFile.model_validate(plugin) for plugin in loaded()),
        code=start.code.record if start.code else None,
        held_out=held_out_of(recipe, validation),
    )


def _budgets(network: nn.Module) -> dict[str, dict[str, int]]:
    """Weights of every masked layer, and how many of them its mask keeps."""
    return {
        name: {"weights": mask.mask.numel(), "kept": int(mask.mask.count_nonzero())}
        for name, mask in score_masks(network).items()
    }
