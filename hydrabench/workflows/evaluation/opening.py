"""The network that --model names: built, given its weights and normalisation, checked on the first images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrabench.checkpoints import Checkpoint
from hydrabench.checkpoints.foreign.kept import counts_of_dense
from hydrabench.checkpoints.foreign.normalization import FORMS
from hydrabench.checkpoints.foreign.weights import load_weights
from hydrabench.checkpoints.own_code import UsedCode, used_code
from hydrabench.config import Normalization
from hydrabench.data import DATASETS, ImageSource, load_images, pixels
from hydrabench.data.forms import OWN_FORMS, is_own
from hydrabench.errors import ConfigError
from hydrabench.files import sha256_of
from hydrabench.masking import kept_counts, prunable_layers
from hydrabench.models import normalized
from hydrabench.models.own_code import Built, is_code
from hydrabench.runtime import World
from hydrabench.workflows.evaluation.external import external_subject
from hydrabench.workflows.evaluation.guards import fitted, guard, on_images
from hydrabench.workflows.evaluation.loading import Subject, open_subject
from hydrabench.workflows.evaluation.request import ModelRequest
from hydrabench.workflows.evaluation.specifications import build
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions

COMPARED = 32  # images on which the network of an ONNX file is compared with onnxruntime


@dataclass(frozen=True)
class _Opened:
    """The network that a request names. normalized: whether it is known what is done to images first."""

    subject: Subject
    built: Built
    arguments: Mapping[str, Any]
    normalized: bool


def open_model(request: ModelRequest, *, options: RunOptions, precision: str = "float32") -> Subject:
    """Make a subject of what --model names, to be judged on --dataset, and check it on the first images.

    Raises: HydrabenchError in one line for whatever does not fit; warnings go to stderr.
    """
    images = load_images(_dataset(request), "test", options.data_dir, download=options.download)
    opened = _open(request, images.shape, images.num_classes, options.device, precision)
    _require_same(request, opened, images)
    return judged_on(images, opened.subject, normalization_given=opened.normalized)


def open_on_own_images(ref: str, *, options: RunOptions, precision: str, described: Mapping[str, Any]) -> Subject:
    """Open a checkpoint, to be judged on the user's own images if --dataset names such, else on those it was made for.

    Args: described: what the options say of it, see `open_checkpoint`.
    Raises: as `open_subject`, `load_images` and `on_images`.
    """
    name = str(described.get("dataset", ""))
    if not is_own(name):
        return open_subject(ref, options=options, precision=precision, described=described)
    rest = {key: value for key, value in described.items() if key != "dataset"}
    subject = open_subject(ref, options=options, precision=precision, described=rest)
    return on_images(subject, load_images(name, "test"))


def _require_same(request: ModelRequest, opened: _Opened, images: ImageSource) -> None:
    """Compare a network that was read from a file with what another program computes, on the first images."""
    if opened.built.check is not None and request.weights is None:
        opened.built.check(pixels(images.take(torch.arange(min(len(images), COMPARED)))))


def own_checkpoint(request: ModelRequest, *, images: ImageSource | None = None) -> Checkpoint:
    """Make a checkpoint, on the CPU, of what --model names: what pruning starts from, and what exports write.

    It keeps the weights that are not zero.
    Args: images: on the first of which it is checked; None: only the number of its outputs is.
    Raises: as `open_model`.
    """
    name = _dataset(request)
    if images is None and is_own(name):
        images = load_images(name, "test")
    sizes = images or DATASETS.get(name)
    if sizes is None:
        raise ConfigError(f"--dataset {name} is none of {', '.join(sorted(DATASETS))}, {OWN_FORMS}")
    opened = _open(request, sizes.shape, sizes.num_classes, "cpu", "float32")
    subject, classes = opened.subject, sizes.num_classes
    if images is not None:
        _require_same(request, opened, images)
        subject = judged_on(images, subject, normalization_given=opened.normalized)
        classes = subject.checkpoint.header.num_classes
    require_outputs(subject.network, request.spec, sizes.shape, classes)
    code = used_code(opened.built, opened.arguments) if is_code(request.spec) else None
    return as_checkpoint(subject, opened.built.spec, code)


def as_checkpoint(subject: Subject, arch: str, code: UsedCode | None) -> Checkpoint:
    """Make a checkpoint of somebody's network, which keeps the weights that are not zero.

    Args: arch: of its header. code: what builds it again; None: nothing does.
    """
    network = subject.network
    about: dict[str, Any] = {"arch": arch, "code": code.record if code else None, "density": 1.0}
    if prunable_layers(network):
        found = counts_of_dense(Path(subject.name), network, None)
        even = kept_counts(network, found.density) == found.counts
        about |= {"density": found.density, "kept": None if even else found.counts}
    header = subject.checkpoint.header.model_copy(update=about)
    return replace(subject.checkpoint, header=header, code=code)


def require_outputs(network: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ConfigError for a network that does not give one logit for each class."""
    modes = {part: part.training for part in network.modules()}
    for part in modes:  # not eval(), which programs refuse
        part.training = False
    try:
        with torch.no_grad():
            found = tuple(network(torch.zeros(2, *shape)).shape)
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"{name} fails on images of {' x '.join(map(str, shape))}: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if found != (2, num_classes):
        raise ConfigError(
            f"{name} returns {found} for 2 images of {num_classes} classes; it must return logits, (2, {num_classes})"
        )


def require_layers(network: nn.Module, name: str) -> None:
    """Raise ConfigError for a network with weights outside of convolutions and linear layers, which no mask reaches."""
    of_layers = {tensor for layer in prunable_layers(network).values() for tensor in layer.parameters()}
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor not in of_layers and sum(size > 1 for size in tensor.shape) > 1:
            raise ConfigError(
                f"{name} computes with {key}, {' x '.join(map(str, tensor.shape))}, which is in no convolution or "
                "linear layer, so that it can be judged but not pruned or trained; give its code as FILE.py:NAME"
            )


def _dataset(request: ModelRequest) -> str:
    if request.dataset is None:
        raise ConfigError(f"--model needs --dataset: one of {', '.join(sorted(DATASETS))}, {OWN_FORMS}")
    return request.dataset


def _open(request: ModelRequest, shape: tuple[int, int, int], num_classes: int, device: str, precision: str) -> _Opened:
    """Build the network, give it its weights and its normalisation, and make a subject of it."""
    built, identity = build(request.spec, _arguments(request), num_classes, shape)
    name, inside = built.name, None
    if request.weights is not None:
        inside = load_weights(built.module, request.weights)
        stem = request.weights.name.partition(".")[0]
        name = name if stem in name.split("-") else f"{name}-{stem}"
        identity["weights_sha256"] = sha256_of(request.weights)
    front = _front(request, built, inside)
    subject = external_subject(
        _behind(built.module, front, shape[0], _dataset(request)),
        name=name,
        dataset=_dataset(request),
        shape=shape,
        num_classes=num_classes,
        device=device,
        precision=precision,
        identity=identity,
    )
    if not built.normalizes and request.weights is None and World().is_main:
        say(f"{name} has fresh weights from seed 0; give trained ones with --weights")
    known = request.normalization is not None or inside is not None
    return _Opened(subject, built, identity.get("arguments", {}), known)


def _arguments(request: ModelRequest) -> Sequence[str]:
    """The arguments, with what RobustBench's zoo is asked by. Raises: ConfigError for --threat of another network."""
    if not request.spec.startswith("robustbench:"):
        if request.threat is not None:
            raise ConfigError(f"--threat is for --model robustbench:NAME; leave it out for {request.spec}")
        return request.arguments
    given = {argument.partition("=")[0] for argument in request.arguments}
    known = {"dataset": _dataset(request), "threat_model": request.threat or "Linf"}
    return [*request.arguments, *(f"{key}={value}" for key, value in known.items() if key not in given)]


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
    """Return what is to be put in front of the network. Raises: ConfigError if that is not known."""
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


def _behind(module: nn.Module, front: Normalization | None, channels: int, dataset: str) -> nn.Module:
    if front is None:
        return module
    if len(front.mean) != channels:
        raise ConfigError(f"--normalization has {len(front.mean)} channels, the images of {dataset} have {channels}")
    return normalized(module, front.mean, front.std)
