"""The commands `train`, `prune` and `finetune`: from a recipe and a source checkpoint to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from hydrabench.checkpoints import Checkpoint, Header
from hydrabench.checkpoints.own_code import UsedCode, build_own, require_recordable, used_code
from hydrabench.config import Densities, Normalization
from hydrabench.data import DATASETS, DataSet, load_images
from hydrabench.data.forms import is_own
from hydrabench.data.own_images import OwnImages, load_own
from hydrabench.errors import CheckpointError, ConfigError, DataError, lookup
from hydrabench.masking import INITIAL_DENSITY, attach_masks, bake_masks, overall_density, score_masks
from hydrabench.models import build_model, normalized
from hydrabench.models.own_code import is_code, is_program, short_spec
from hydrabench.recipes import ModelRecipe, Recipe
from hydrabench.runtime import stream
from hydrabench.workflows.evaluation.opening import own_checkpoint, require_layers, require_outputs
from hydrabench.workflows.evaluation.request import ModelRequest
from hydrabench.workflows.opening import NOTHING, open_expected
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.phase import run_phase
from hydrabench.workflows.training.start import Masks, Start

Source: TypeAlias = str | ModelRequest | Checkpoint  # a path or zoo id, what --model names, or a network in memory


def train(
    recipe: Recipe,
    out: Path,
    *,
    options: RunOptions,
    ref: Source | None = None,
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
    section, options = recipe.train, _with_own_images(recipe, options)
    if section is None:
        raise ConfigError(f"recipe {recipe.name} has no `train:` section; add one with epochs and lr")
    if ref is not None and section.initialization != "default":
        raise ConfigError(
            f"train.initialization {section.initialization} draws new weights, and those of {ref} would be lost; add "
            "--set train.initialization=default, or leave --ckpt out"
        )
    source = None
    if ref is not None:
        recipe, source, options = _open_source(recipe, ref, described, options)
    if source and source.header.density < 1:
        raise CheckpointError(
            f"{ref} is pruned, and `train` would fill its zeros; use `hydrabench finetune` to keep them"
        )
    network, code = (source.baked(), source.code) if source else _fresh(recipe, options)
    density = overall_density(network, section.density, section.scope)
    masks = Masks(section.density, section.scope, section.scores, section.rescale_weights)
    parent, held_out = (source.sha256, source.header.held_out) if source else (None, None)
    start = Start(network, "train", "train", density, parent, masks if density < 1 else None, code, held_out)
    return run_phase(recipe, section, start, out, resume, options)


def fresh_network(recipe: Recipe) -> nn.Module:
    """Build the recipe's network for its data set, with the initial weights of its seed."""
    return _fresh(recipe, _with_own_images(recipe, RunOptions()))[0]


def _with_own_images(recipe: Recipe, options: RunOptions) -> RunOptions:
    """Return the options with the training images, if they are files of the user's own, which say their own sizes."""
    if options.images is not None or not is_own(recipe.data.name):
        return options
    return replace(options, images=load_own(recipe.data.name, "train"))


def _fresh(recipe: Recipe, options: RunOptions) -> tuple[nn.Module, UsedCode | None]:
    """Return the recipe's network with fresh weights, and the code that built it if it is not of the registry."""
    dataset, model = options.images or lookup("data set", DATASETS, recipe.data.name), recipe.network()
    generator = stream(recipe.seed, "initial weights")
    if is_code(model.arch):
        return _of_code(model, dataset, generator.initial_seed())
    normalization = _normalization(model.normalization)
    network = build_model(
        model.arch, dataset.shape, dataset.num_classes, normalization=normalization, generator=generator
    )
    return network, None


def _of_code(model: ModelRecipe, dataset: DataSet | OwnImages, seed: int) -> tuple[nn.Module, UsedCode]:
    built = build_own(model.arch, model.args, dataset.num_classes, dataset.shape, seed=seed)
    front = model.normalization
    if front and len(front.mean) != dataset.shape[0]:
        raise ConfigError(f"normalization has {len(front.mean)} channels, the images have {dataset.shape[0]}")
    network = normalized(built.module, front.mean, front.std) if front else built.module
    require_outputs(network, model.arch, dataset.shape, dataset.num_classes)
    return network, used_code(built, model.args)


def prune(
    recipe: Recipe,
    ref: Source,
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
    section, wanted, options = recipe.prune, recipe.prune.density, _with_own_images(recipe, options)
    recipe, source, options = _open_source(recipe, ref, described, options)
    network = source.baked()
    density = overall_density(network, wanted, section.scope)
    masks = Masks(wanted, section.scope, section.scores, initial_density=section.initial_density or INITIAL_DENSITY)
    start = Start(network, "prune", "prune", density, source.sha256, masks, source.code, source.header.held_out)
    return run_phase(recipe, section, start, out, resume, options)


def finetune(
    recipe: Recipe,
    ref: Source,
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
    section = recipe.finetune
    if section is None:
        raise ConfigError(f"recipe {recipe.name} has no `finetune:` section; add one with epochs and lr")
    options = _with_own_images(recipe, options)
    recipe, source, options = _open_source(recipe, ref, described, options)
    density = section.density
    _require_density(density, source.header.density, ref, lwm=lwm)
    network = source.network
    if lwm and density is not None:
        bake_masks(network)
        overall = overall_density(network, density, section.scope)
        attach_masks(network, density, scope=section.scope)
        start = Start(network, "finetune", "lwm", overall, source.sha256, None, source.code, source.header.held_out)
    else:
        if not score_masks(network):
            attach_masks(network, source.header.density, kept=source.header.kept)
        density, held_out = source.header.density, source.header.held_out
        start = Start(network, "finetune", "finetune", density, source.sha256, None, source.code, held_out)
    return run_phase(recipe, section, start, out, resume, options)


def _require_density(density: Densities | None, present: float, ref: Source, *, lwm: bool) -> None:
    """Refuse to finetune unless something says which weights to keep: LWM its density, or else a pruned source."""
    if lwm and density is None:
        raise ConfigError("--lwm needs --density, the fraction of weights kept by magnitude, for example 0.1")
    if not lwm and density is not None and density != present:
        raise ConfigError(f"{ref} keeps {present} of its weights; --density belongs to --lwm")
    if not lwm and present == 1:
        raise CheckpointError(f"{ref} is not pruned; run `hydrabench prune` first, or add --lwm --density 0.1")


def _open_source(
    recipe: Recipe, ref: Source, described: Mapping[str, Any], options: RunOptions
) -> tuple[Recipe, Checkpoint, RunOptions]:
    """Load what a phase starts from; what a file of others does not say is as in the recipe.

    Returns: the recipe, which a network of the user's own takes the place of its `model:` in; the checkpoint; the
        options, whose images, if they were handed over, have as many classes as the network.
    Raises: CheckpointError if it is not of the recipe's network; DataError if images that were handed over do not fit.
    """
    if isinstance(ref, ModelRequest):
        return *_open_own(recipe, ref, options), options
    if isinstance(ref, Checkpoint):
        return recipe.model_copy(update={"model": _model_of(ref.header)}), ref, options
    model = recipe.model
    expected: dict[str, Any] = {"dataset": recipe.data.name}
    if model is not None:
        expected |= {"arch": model.arch, "normalization": model.normalization or "none"}
    code = {"model": model.arch} if model is not None and is_code(model.arch) else {}
    source = open_expected(ref, expected, **{**code, **described})
    header = source.header
    if model is None:
        model = _model_of(header)
        recipe = recipe.model_copy(update={"model": model})
    if options.images is not None:
        options = replace(options, images=_fitted(options.images, header, ref))
        if header.held_out and header.dataset != recipe.data.name:
            say(f"{ref} was trained on {header.dataset}; whether it saw the held-out images is not known")
            source = replace(source, header=header.model_copy(update={"held_out": None}))
    _require_wanted(recipe, model, header, ref, dataset=recipe.data.name if options.images is None else header.dataset)
    return recipe, source, options


def _require_wanted(recipe: Recipe, model: ModelRecipe, header: Header, ref: Source, *, dataset: str) -> None:
    """Raise CheckpointError if a checkpoint is not of the recipe's `model`, for images of `dataset`."""
    if (header.arch, header.dataset) != (short_spec(model.arch), dataset):
        raise CheckpointError(
            f"{ref} is a {header.arch} for {header.dataset}; recipe {recipe.name} wants a {short_spec(model.arch)} "
            f"for {dataset}" + ("; without its `model:` it takes any network" if header.code else "")
        )
    if header.code and header.code.arguments != model.args:
        raise CheckpointError(
            f"{ref} is {header.arch} of {header.code.arguments}, recipe {recipe.name} has args {model.args}"
        )
    if header.normalization != model.normalization:
        raise CheckpointError(
            f"{ref} normalises with {header.normalization}, recipe {recipe.name} with {model.normalization}"
        )


def _model_of(header: Header) -> ModelRecipe:
    """The `model:` section that a checkpoint takes the place of."""
    arguments = header.code.arguments if header.code else {}
    return ModelRecipe(arch=header.arch, args=arguments, normalization=header.normalization)


def _fitted(images: OwnImages, header: Header, ref: str) -> OwnImages:
    """Return images of the user's own with as many classes as a checkpoint has."""
    if images.shape != tuple(header.shape) or images.num_classes > header.num_classes:
        raise DataError(
            f"images have shape {images.shape} and labels up to {images.num_classes - 1}; {ref} takes "
            f"{tuple(header.shape)} and has {header.num_classes} classes"
        )
    return replace(images, num_classes=header.num_classes)


def _open_own(recipe: Recipe, request: ModelRequest, options: RunOptions) -> tuple[Recipe, Checkpoint]:
    """Build what --model names, check it on the first training images, and make it the recipe's network."""
    name = recipe.data.name
    if request.dataset not in (None, name):
        raise ConfigError(f"recipe {recipe.name} trains on {name}, --dataset says {request.dataset}; leave it out")
    images = options.images or load_images(name, "train", options.data_dir, download=options.download)
    source = own_checkpoint(replace(request, dataset=name), images=images)
    require_recordable(source.header.arch, source.header.code, request.spec)
    if is_program(request.spec):
        require_layers(source.network, request.spec)
    return recipe.model_copy(update={"model": _model_of(source.header)}), source


def _normalization(section: Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return (section.mean, section.std) if section else None
