"""What --model names, opened: built, given its weights and normalisation, checked on the first images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hydrabench.checkpoints.foreign.normalization import FORMS
from hydrabench.checkpoints.foreign.weights import load_weights
from hydrabench.config import Normalization
from hydrabench.data import DATASETS, ImageSource, load_images
from hydrabench.data.own_images import OWN_FORMS
from hydrabench.errors import ConfigError
from hydrabench.files import sha256_of
from hydrabench.models import normalized
from hydrabench.models.own_code import Built
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.external import external_subject
from hydrabench.workflows.evaluation.guards import fitted, guard
from hydrabench.workflows.evaluation.loading import Subject
from hydrabench.workflows.evaluation.specifications import build
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions


@dataclass(frozen=True)
class ModelRequest:
    """A network of the user's own in the words of the command line.

    spec: see `specifications.build`. arguments: KEY=VALUE. weights: a file of tensors, None for those that it comes
    with. dataset: see `data.load_images`. normalization: put in front of it; None: nothing was said.
    """

    spec: str
    arguments: tuple[str, ...] = ()
    weights: Path | None = None
    dataset: str | None = None
    normalization: Normalization | Literal["none"] | None = None


def open_model(request: ModelRequest, *, options: RunOptions, precision: str = "float32") -> Subject:
    """Make a subject of what --model names, to be judged on --dataset, and check it on the first images.

    Raises: HydrabenchError in one line for whatever does not fit; warnings go to stderr.
    """
    if request.dataset is None:
        raise ConfigError(f"--model needs --dataset: one of {', '.join(sorted(DATASETS))}, {OWN_FORMS}")
    images = load_images(request.dataset, "test", options.data_dir, download=options.download)
    built, identity = build(request.spec, request.arguments, images.num_classes)
    name, inside = built.name, None
    if request.weights is not None:
        inside = load_weights(built.module, request.weights)
        name = f"{name}-{request.weights.name.partition('.')[0]}"
        identity["weights_sha256"] = sha256_of(request.weights)
    front = _front(request, built, inside)
    subject = external_subject(
        _behind(built.module, front, images),
        name=name,
        dataset=request.dataset,
        shape=images.shape,
        num_classes=images.num_classes,
        device=options.device,
        precision=precision,
        identity=identity,
    )
    if not built.normalizes and request.weights is None and World().is_main:
        say(f"{name} has fresh weights from seed 0; give trained ones with --weights")
    return judged_on(images, subject, normalization_given=request.normalization is not None or inside is not None)


def judged_on(images: ImageSource, subject: Subject, *, normalization_given: bool) -> Subject:
    """Give somebody's network the images that it is judged on, after the checks on the first of them.

    Raises: as `guards.fitted` and `guards.guard`; warnings go to stderr.
    """
    images = fitted(subject, images)
    known = subject.checkpoint.header.model_copy(update={"num_classes": images.num_classes})
    subject = replace(subject, checkpoint=replace(subject.checkpoint, header=known), images=images)
    warnings = guard(subject, images, normalization_given=normalization_given)
    for warning in warnings if World().is_main else ():
        say(warning)
    return subject


def _front(request: ModelRequest, built: Built, inside: Normalization | None) -> Normalization | None:
    """What is to be put in front of the network. Raises: ConfigError if that is not known."""
    given = request.normalization
    if inside is not None:
        if given not in (None, inside):
            raise ConfigError(
                f"{request.weights} holds a normalisation with mean {inside.mean} and std {inside.std}, which is not "
                "what --normalization says; leave the option out"
            )
        return inside
    if given is None and not built.normalizes:
        raise ConfigError(f"{request.spec} does not say how it normalises images; give --normalization, {FORMS}")
    return given if isinstance(given, Normalization) else None


def _behind(module: nn.Module, front: Normalization | None, images: ImageSource) -> nn.Module:
    if front is None:
        return module
    if len(front.mean) != images.shape[0]:
        raise ConfigError(
            f"--normalization has {len(front.mean)} channels, the images of {images.name} have {images.shape[0]}"
        )
    return normalized(module, front.mean, front.std)


def request_of(given: Mapping[str, Any], normalization: Any, dataset: str | None) -> ModelRequest | None:
    """The network of --model, --model-args and --weights; None if --model was not given."""
    if given["model"] is None:
        return None
    return ModelRequest(given["model"], tuple(given["model_args"]), given["weights"], dataset, normalization)
