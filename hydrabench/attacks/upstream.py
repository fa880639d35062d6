"""The attacks of AutoAttack: the authors' own code (package `pyautoattack`), unmodified.

What is added around it: random draws that are the same for every image, so that a verdict does not depend on which
other images are attacked beside it; forward passes padded for the same reason; and nothing of its side effects is left
behind.

Source: Croce and Hein (2020), arXiv:2003.01690, and the two papers of FAB (arXiv:1907.02044) and Square
(arXiv:1912.00049).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.attacks.padding import Padded
from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.runtime import stream

UPSTREAM_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
MOST_TARGETS = 9  # classes that a targeted attack tries, where there are so many
DRAWING = ("autopgd_base", "fab_base", "square")  # the modules of upstream that draw random numbers


@dataclass(frozen=True)
class UpstreamAttack:
    """One attack of the ensemble.

    name: as upstream has it, such as "apgd-ce". version: upstream's, whose settings it gets, such as "standard".
    norm: a key of `UPSTREAM_NORMS`. epsilon: radius in pixel units, >= 0. classes: logits of the network.
    seed: of all random draws, in [0, 2^63). alone: whether an image's points depend on it and the seed alone; False
    leaves draws and batches as upstream makes them, one batch after another. queries: of Square. targets: classes that
    APGD-T tries, where there are so many.
    """

    name: str
    version: str
    norm: str
    epsilon: float
    classes: int
    seed: int
    alone: bool = True
    queries: int = 5000
    targets: int = MOST_TARGETS


def attack_points(
    network: nn.Module, x: Tensor, y: Tensor, attack: UpstreamAttack, *, heard: Callable[[], None] = lambda: None
) -> Tensor:
    """Run one attack on images that the network classifies right.

    Args:
        network: classifier in eval mode, on the device and in the precision of `x`.
        x: images, (B, C, H, W), in [0, 1]. y: true classes, (B,), int64.
        heard: called after every forward pass.
    Returns: what upstream returns, (B, C, H, W), float32: for an image that it does not break, mostly the image. It
        attacks in float32, and its points may leave the ball by a rounding error.
    Raises: NonFiniteError if a logit is NaN or infinite; HydrabenchError if `pyautoattack` is missing.
    """
    forward = _forward(Padded(network) if attack.alone else network, x.dtype, heard)
    with _left_as_found(network, on_gpu=x.is_cuda), ExitStack() as stack:
        made: Any = require_pyautoattack()(
            forward,
            norm=UPSTREAM_NORMS[attack.norm],
            eps=attack.epsilon,
            seed=attack.seed,
            version=attack.version,
            device=x.device,
        )
        made.square.n_queries = attack.queries
        made.fab.n_target_classes = min(MOST_TARGETS, attack.classes - 1)
        made.apgd_targeted.n_target_classes = min(attack.targets, attack.classes - 1)
        perturb = _choose(made, attack.name)
        if attack.alone:
            stack.enter_context(_same_draws(stream(attack.seed, attack.name, version=2)))
        # Upstream views gradients as (B, -1), which works for images in the ordinary memory layout only.
        points: Tensor = perturb(x.float().contiguous(), y)
    return points.detach()


def _choose(made: Any, name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Set up an attack as upstream's own driver (`run_standard_evaluation`) does before it calls it."""
    if name in ("apgd-ce", "apgd-dlr"):
        made.apgd.loss = name.removeprefix("apgd-")
        return made.apgd.perturb  # type: ignore[no-any-return]
    if name in ("fab", "fab-t"):
        made.fab.targeted = name == "fab-t"
        if made.fab.targeted:
            made.fab.n_restarts = 1
        return made.fab.perturb  # type: ignore[no-any-return]
    parts = {"apgd-t": made.apgd_targeted, "square": made.square}
    return parts[name].perturb  # type: ignore[no-any-return]


def require_pyautoattack() -> Any:
    """Return upstream's class. Raises: HydrabenchError that says how to get it."""
    try:
        from pyautoattack import AutoAttack  # noqa: PLC0415  (an optional package)
    except ImportError as error:
        raise HydrabenchError(
            "AutoAttack needs the package pyautoattack, which is not installed; run: pip install pyautoattack"
        ) from error
    return AutoAttack


def _forward(network: nn.Module, dtype: torch.dtype, heard: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """Return the network as upstream calls it: float32 images to finite float32 logits."""

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = network(images.to(dtype)).float()
        if not isfinite(logits.detach().sum().item()) and not torch.isfinite(logits).all():
            raise NonFiniteError(
                "a logit is NaN or infinite during AutoAttack; check the checkpoint, or evaluate with --precision "
                "float64"
            )
        if images.requires_grad and not logits.requires_grad:  # cut off from the input: every gradient is zero
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        heard()
        return logits

    return predict


@contextmanager
def _same_draws(generator: torch.Generator) -> Iterator[None]:
    """Inside, upstream's modules draw once for all images of a batch what they otherwise draw for each.

    Upstream draws starts for the images that are still robust, row by row from one generator, so that a row's numbers
    depend on the rows before it. Here the k-th draw of an attack is the same for every image that lives to see it,
    whichever images share its batch, as the windows of Square are in upstream, too. What is drawn has the same
    distribution for each image. The network's own draws are left alone.
    """
    own = ModuleType("torch")
    own.__dict__.update(torch.__dict__)
    own.__dict__["rand"] = _drawing(torch.rand, generator)
    own.__dict__["randn"] = randn = _drawing(torch.randn, generator)
    own.__dict__["randn_like"] = lambda images: randn(images.shape).to(images)
    modules = [import_module(f"pyautoattack.{name}") for name in DRAWING]
    try:
        for module in modules:
            module.__dict__["torch"] = own
        yield
    finally:
        for module in modules:
            module.__dict__["torch"] = torch


def _drawing(draw: Callable[..., Tensor], generator: torch.Generator) -> Callable[[Any], Tensor]:
    """Return `draw` for upstream's shapes: (B, C, H, W) is drawn for one image and repeated, others belong to none."""

    def drawn(shape: Any) -> Tensor:
        if len(shape) < 4:
            return draw(tuple(shape), generator=generator)
        return draw((1, *shape[1:]), generator=generator).repeat(shape[0], 1, 1, 1)

    return drawn


@contextmanager
def _left_as_found(network: nn.Module, *, on_gpu: bool) -> Iterator[None]:
    """Undo upstream's side effects: seeding, logging and parameter gradients.

    It seeds torch's global generators, warns through the logger "auto-attack" (of zero gradients, for every target),
    and FAB calls `backward`, which would fill the parameters' gradients.
    """
    logger = logging.getLogger("auto-attack")
    disabled = logger.disabled
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    devices = [torch.cuda.current_device()] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        try:
            logger.disabled = True
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            logger.disabled = disabled
            for parameter in trained:
                parameter.requires_grad_(True)
