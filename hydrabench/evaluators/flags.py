"""Named flags: signs that accuracy under an attack overstates robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydrabench.evaluators.description import Evaluator, Line, is_correct

if TYPE_CHECKING:
    from torch import nn

    from hydrabench.data.images import Block

# name -> what the flagged network or images do; "of the images" is added where that are not all.
FLAGS = {
    "randomised-output": "other logits each time for the same image",
    "softmax-output": "probabilities instead of logits",
    "one-hot-output": "the predicted class alone instead of scores",
    "detached-input": "no gradient reaches the input",
    "zero-gradient": "zero gradient where the attack starts",
    "quantised-input": "blind to changes of a fiftieth of a grey level",
    "dynamic-graph": "gradients are computed inside the forward pass",
    "square-alone": "broken by Square, after gradients had failed",
    "late-restarts": "broken only in the second half of the restarts; more would break more",
}
SQUARE_SHARE = 0.002  # of the images, as AutoAttack has it


def has_flags(evaluator: Evaluator) -> bool:
    """Return whether an evaluator attacks, so that its number may be too high."""
    return evaluator.claims == "upper"


def network_flags(network: nn.Module, block: Block, settings: Any) -> dict[str, float]:
    """Check a network on a block of images. Returns: by name of `FLAGS`, the share of these images, in (0, 1]."""
    import torch

    from hydrabench.attacks import random_start
    from hydrabench.attacks.checks import network_signs
    from hydrabench.runtime import exact_arithmetic

    with torch.random.fork_rng(devices=[block.images.device.index or 0] if block.images.is_cuda else []):
        generator = torch.Generator().manual_seed(0)
        start = random_start(block.images, float(settings.epsilon), norm=settings.norm, generator=generator)
        with exact_arithmetic():
            return network_signs(network, block.images, block.labels, start.to(block.images))


def record_flags(lines: Sequence[Line], settings: Any) -> dict[str, float]:
    """Return what the records of a whole ledger show. Returns: by name of `FLAGS`, the share of all images."""
    found = {}
    of_square = sum(line.get("broken_by") == "square" for line in lines)
    others = [name for name in getattr(settings, "order", ()) if name != "square"]
    if others and of_square > SQUARE_SHARE * len(lines):
        found["square-alone"] = of_square / len(lines)
    restarts = getattr(settings, "restarts", 1)
    late = sum(is_correct(line) and 2 * (line.get("restart") or 0) >= restarts for line in lines)
    if restarts > 1 and late:
        found["late-restarts"] = late / len(lines)
    return found


def flag_texts(flags: Mapping[str, float]) -> list[str]:
    """Write each flag as "zero-gradient (zero gradient where the attack starts, 28% of the images)"."""
    return [
        f"{name} ({FLAGS.get(name, 'a sign that this version does not know')}"
        f"{f', {100 * share:.3g}% of the images' if share < 1 else ''})"
        for name, share in flags.items()
    ]
