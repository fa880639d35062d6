"""Input normalisation: known ones by name, read from text, and compared on images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hydrabench.config import Normalization
from hydrabench.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


NONE: Literal["none"] = "none"
# Means and standard deviations of the training images, as the common recipes have them; NONE: no normalisation.
KNOWN: dict[str, Normalization | Literal["none"]] = {
    NONE: NONE,
    "cifar10": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)),
    "cifar100": Normalization(mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    "imagenet": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "half": Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}
FORMS = f"one of {', '.join(KNOWN)}, or MEAN/STD such as 0.49,0.48,0.44/0.2,0.19,0.2"
# How much more accurate, as a fraction of the images, a network must be under another normalisation to say so.
FAR_BETTER = 0.1


def parse_normalization(text: str) -> Normalization | Literal["none"]:
    """Read --normalization: a name of `KNOWN`, or means, a slash, and standard deviations, one for each channel.

    Raises: ConfigError if it is neither, not finite, or in grey levels; then with the value in pixel units.
    """
    if text in KNOWN:
        return KNOWN[text]
    try:
        mean, std = (tuple(float(part) for part in side.split(",")) for side in text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--normalization {text!r}: give {FORMS}") from error
    values = (*mean, *std)
    if not all(map(math.isfinite, values)) or len(mean) != len(std) or min(std) <= 0:
        raise ConfigError(
            f"--normalization {text}: needs one finite mean and one finite positive deviation per channel; give {FORMS}"
        )
    if max(map(abs, values)) > 1:
        pixel = "/".join(",".join(f"{value / 255:.4g}" for value in side) for side in (mean, std))
        raise ConfigError(
            f"--normalization {text} is in grey levels, images are in [0, 1]; divided by 255, give {pixel}"
        )
    return Normalization(mean=mean, std=std)


@dataclass(frozen=True)
class Better:
    """A normalisation under which a network is far more accurate. accuracy, instead_of: fractions of the images."""

    name: str
    accuracy: float
    instead_of: float


def better_normalization(network: nn.Module, x: Tensor, y: Tensor) -> Better | None:
    """Return the known normalisation under which `network` is far more accurate than as it is; None if there is none.

    Args:
        network: in eval mode, with or without a normalisation in front.
        x: images, (B, C, H, W), in [0, 1]. y: their labels, (B,).
    A difference counts if it is at least `FAR_BETTER` and three standard errors of a difference of B images.
    """
    from hydrabench.models import inner_network

    bare = inner_network(network)
    now = _accuracy(network, x, y)
    if now > 1 - FAR_BETTER:
        return None
    best = max((Better(name, _accuracy(other, x, y), now) for name, other in _variants(bare, x.shape[1])),
               key=lambda found: found.accuracy)  # fmt: skip
    noise = 3 * math.sqrt((now * (1 - now) + best.accuracy * (1 - best.accuracy)) / len(y))
    return best if best.accuracy - now >= max(FAR_BETTER, noise) else None


def _variants(bare: nn.Module, channels: int) -> Iterator[tuple[str, nn.Module]]:
    from hydrabench.models import normalized

    for name, known in KNOWN.items():
        if isinstance(known, str):
            yield name, bare
        elif channels in (len(known.mean), 1):
            parameter = next(bare.parameters())
            mean, std = known.mean[:channels], known.std[:channels]
            yield name, normalized(bare, mean, std).to(parameter.device, parameter.dtype).eval()


def _accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    import torch

    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())
