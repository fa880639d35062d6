"""Checks of somebody's network before it is judged: mistakes that would only give wrong numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hydrabench.checkpoints import better_normalization, own_normalization
from hydrabench.data import DATASETS, ImageSet, ImageSource, pixels
from hydrabench.data.encoded import EncodedImages
from hydrabench.errors import ConfigError, DataError
from hydrabench.models import inner_network
from hydrabench.runtime import exact_arithmetic
from hydrabench.workflows.evaluation.loading import STORED_IN, Subject

IMAGES = 100
SAME = 1e-3  # logits of one image in two batches may differ by rounding, relative to the largest
GUARD_GAP = 0.1  # of the images


def guard(subject: Subject, images: ImageSource, *, normalization_given: bool) -> list[str]:
    """Refuse a network that cannot be judged as it is, going by the first images; return warnings, one line each.

    Args: normalization_given: whether the user said what is in front of it; then a better one is only a warning.
    Raises: ConfigError naming the two numbers that do not fit, and what to give.
    """
    few = torch.arange(min(len(images), IMAGES))
    x = pixels(images.take(few)).to(subject.device, STORED_IN[subject.precision])
    y = images.labels[few].to(subject.device)
    if not (x.min() >= 0 and x.max() <= 1):
        raise ConfigError(
            f"images of {images.name} lie in [{x.min().item():.4g}, {x.max().item():.4g}], not in [0, 1]; give pixels "
            "and let --normalization do the rest"
        )
    with torch.no_grad(), exact_arithmetic():
        logits = _logits(subject, x)
        for check in (_finite, _repeatable, _alone, _no_probabilities):
            check(subject, x, logits)
        return _doubts(subject, x, y, logits, normalization_given=normalization_given)


def fitted(subject: Subject, images: ImageSource) -> ImageSource:
    """Return the images with as many classes as the network has outputs.

    Of a user's own images whose classes have no names, the highest label is all that is known of their number.
    Raises: ConfigError if the two do not fit.
    """
    first = pixels(images.take(torch.arange(1))).to(subject.device, STORED_IN[subject.precision])
    with torch.no_grad(), exact_arithmetic():
        outputs = _logits(subject, first).shape[1]
    if outputs == images.num_classes:
        return images
    unnamed = isinstance(images, ImageSet | EncodedImages) and images.name not in DATASETS and not images.names
    if unnamed and outputs > images.num_classes:
        assert isinstance(images, ImageSet | EncodedImages)
        return replace(images, num_classes=outputs)
    raise ConfigError(
        f"{subject.name} has {outputs} outputs, {images.name} has {images.num_classes} classes; give another "
        f"--dataset, or a network of {images.num_classes} outputs (--model-args)"
    )


def on_images(subject: Subject, images: ImageSource) -> Subject:
    """Return a checkpoint that is judged on other images than the test images of its data set.

    Raises: DataError for images of another size; ConfigError as `fitted`.
    """
    wanted = subject.checkpoint.header.shape
    if images.shape != tuple(wanted):
        raise DataError(f"images have shape {images.shape}; {subject.name} takes {tuple(wanted)}")
    return replace(subject, images=fitted(subject, images))


def _logits(subject: Subject, x: Tensor) -> Tensor:
    try:
        logits = subject.network(x)
    except Exception as error:  # it is the user's code
        size = " x ".join(map(str, x.shape))
        raise ConfigError(
            f"{subject.name} fails on images of {size} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "check that --dataset is what it was made for; it has to take batches of any size"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{subject.name} returns {found} for {len(x)} images; it must return logits, ({len(x)}, K)")
    return logits


def _finite(subject: Subject, _x: Tensor, logits: Tensor) -> None:
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        raise ConfigError(
            f"{subject.name} gives NaN or infinite logits on {broken} of {len(logits)} images; check --weights and "
            "--normalization"
        )


def _repeatable(subject: Subject, x: Tensor, logits: Tensor) -> None:
    difference = _difference(subject.network(x), logits)
    if difference > SAME:
        raise ConfigError(
            f"{subject.name} gives the same {len(x)} images logits that differ by {difference:.2g} of the largest the "
            f"second time, more than {SAME:g}: dropout or other noise is on in eval mode; switch it off in its code"
        )


def _alone(subject: Subject, x: Tensor, logits: Tensor) -> None:
    if len(x) == 1:
        return
    difference = _difference(_logits(subject, x[:1]), logits[:1])
    if difference > SAME:
        raise ConfigError(
            f"{subject.name} gives an image alone logits that differ by {difference:.2g} of the largest from those in "
            f"a batch of {len(x)}, more than {SAME:g}: it uses batch statistics (train mode); export or build it in "
            "eval mode"
        )


def _difference(found: Tensor, known: Tensor) -> float:
    return float((found - known).abs().max() / known.abs().max().clamp_min(1e-12))


def _no_probabilities(subject: Subject, x: Tensor, logits: Tensor) -> None:
    sums = logits.sum(1)
    if logits.min() >= 0 and logits.shape[1] > 1 and bool(((sums - 1).abs() < 1e-3).all()):
        raise ConfigError(
            f"{subject.name} returns values from {logits.min().item():.2g} to {logits.max().item():.2g} that add up to "
            f"1 on each of {len(x)} images: probabilities, whose gradients vanish; take the softmax off its end"
        )


def _doubts(subject: Subject, x: Tensor, y: Tensor, logits: Tensor, *, normalization_given: bool) -> list[str]:
    """Mistakes that go by accuracy. Raises: ConfigError for a far better normalisation, unless one was given."""
    count, accuracy = len(y), _accuracy(logits, y)
    right = f"{subject.name} is right on {100 * accuracy:.0f}% of {count} images as it is"
    if any(True for _ in subject.network.parameters()):
        better = better_normalization(subject.network, x, y)
        if better is not None:
            line = f"{right}, and on {100 * better.accuracy:.0f}% under --normalization {better.name}"
            if not normalization_given:
                raise ConfigError(f"{line}; give that, or --normalization none to judge it as it is")
            return [f"warning: {line}; was it trained on images normalised so?"]
    if twice := _normalized_twice(subject, x, y, accuracy):
        return [twice]
    noise: Callable[[float], float] = lambda p: math.sqrt(p * (1 - p) / count)  # noqa: E731
    if x.shape[1] == 3:
        flipped = _accuracy(subject.network(x.flip(1)), y)
        if flipped - accuracy >= max(GUARD_GAP, 3 * (noise(accuracy) + noise(flipped))):
            return [
                f"warning: {right}, and on {100 * flipped:.0f}% with blue, green, red for red, green, blue; was it "
                "trained on images in that order? Give it code that flips the channels first"
            ]
    chance = 1 / logits.shape[1]
    if count >= 20 and accuracy <= chance + 2 * noise(chance):
        return [
            f"warning: {right}; guessing is right on {100 * chance:.3g}%. Check --weights, --normalization, and the "
            "order of its classes"
        ]
    return []


def _normalized_twice(subject: Subject, x: Tensor, y: Tensor, accuracy: float) -> str | None:
    """Warn of a normalisation in front of a network that has its own, unless it is far better with both."""
    inner = inner_network(subject.network)
    own = own_normalization(inner, x[:2]) if inner is not subject.network else None
    if own is None or accuracy - _accuracy(inner(x), y) >= GUARD_GAP:
        return None
    mean, std = (", ".join(f"{value:.3g}" for value in side) for side in (own.mean, own.std))
    return (
        f"warning: {subject.name} normalises images itself, with mean {mean} and std {std}, after --normalization did; "
        "give --normalization none if it takes pixels"
    )


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(1) == y).double().mean())
