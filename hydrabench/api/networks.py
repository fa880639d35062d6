"""The network that is judged, and its images: a module, a checkpoint or a zoo id, made ready for the workflows."""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from hydrabench.api.runs import TrainingRun
from hydrabench.checkpoints import parse_normalization
from hydrabench.config import Normalization
from hydrabench.data import ImageSource, given_images, load_images
from hydrabench.data.forms import is_own
from hydrabench.errors import ConfigError
from hydrabench.workflows.evaluation.external import external_subject
from hydrabench.workflows.evaluation.guards import on_images
from hydrabench.workflows.evaluation.loading import Subject, open_subject
from hydrabench.workflows.evaluation.opening import judged_on
from hydrabench.workflows.run_options import RunOptions

Network: TypeAlias = "nn.Module | str | Path | TrainingRun"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def reference(network: str | Path | TrainingRun) -> str:
    """A checkpoint as the workflows name it: a path or a zoo id."""
    if isinstance(network, TrainingRun):
        return str(network.path)
    if not isinstance(network, str | Path):
        raise ConfigError(
            f"network is a {type(network).__name__}; give a module, a checkpoint's path, a run folder, a "
            "TrainingRun or a zoo id"
        )
    return str(network)


def subject_of(
    network: Network, data: Any, *, options: RunOptions, precision: str, name: str | None, n: int | None
) -> Subject:
    """Make the subject of an evaluation, with its images; the network that was given stays as it is.

    Args:
        data: a registered name, whose test images are taken; what `data.given_images` takes; or None for the test
            images of a checkpoint's own data set. n: how many images will be judged, None for all.
        name: in tables; None: the zoo id, the path or the module's class.
    Raises: HydrabenchError for images or labels that do not fit the network, and as `open_subject`.
    """
    if isinstance(network, nn.Module):
        return subject_of_module(network, images_of(data, options, n=n), options, precision=precision, name=name)
    like = network.like if isinstance(network, TrainingRun) else None
    described = {"model": like} if like is not None else {}
    subject = open_subject(reference(network), options=options, precision=precision, name=name, described=described)
    known = subject.checkpoint.header.dataset
    if data is None or (isinstance(data, str) and data == known and not is_own(known)):
        return subject
    return on_images(subject, images_of(data, options, n=n))


def images_of(data: Any, options: RunOptions, *, n: int | None = None, split: str = "test") -> ImageSource:
    """Return the images that a caller names or hands over. Raises: ConfigError or DataError."""
    if data is None:
        raise ConfigError(
            "a module does not say what it was made for; give data, such as 'cifar10' or (images, labels)"
        )
    if isinstance(data, str):
        return load_images(data, split, options.data_dir, download=options.download)
    return replace(given_images(data, n), split=split)


def subject_of_module(
    module: nn.Module,
    images: ImageSource,
    options: RunOptions,
    *,
    precision: str = "float32",
    name: str | None = None,
) -> Subject:
    """Make a subject of a copy of a module, checked on the first images. Raises: HydrabenchError as `guard`."""
    kind = type(module)
    subject = external_subject(
        module,
        name=name or kind.__name__,
        dataset=images.name,
        shape=images.shape,
        num_classes=images.num_classes,
        device=_device(module, options),
        precision=precision,
        identity={"spec": f"{kind.__module__}.{kind.__qualname__}", "code_sha256": _code_sha256(module)},
    )
    return judged_on(images, subject, normalization_given=True)  # what it does to images is its own business


def _device(module: nn.Module, options: RunOptions) -> str:
    """Return the device to compute on: "auto" is where the module is."""
    first = next(iter(module.parameters()), None)
    return str(first.device) if first is not None and options.device == "auto" else options.device


def _code_sha256(module: nn.Module) -> str:
    """Hash what a network computes beside its tensors: its parts, and the code of those that are not torch's own."""
    digest = hashlib.sha256(_ADDRESS.sub("", repr(module)).encode())
    kinds = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):  # typed at a prompt
            digest.update(kind.__qualname__.encode())
    return digest.hexdigest()


def as_normalization(given: Any) -> Any:
    """A normalisation as `open_checkpoint` takes it: a text as on the command line, or (means, deviations)."""
    if isinstance(given, str):
        return parse_normalization(given)
    if isinstance(given, tuple | list) and len(given) == 2:
        return Normalization(mean=tuple(given[0]), std=tuple(given[1]))
    return given
