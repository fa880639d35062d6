"""Schedules as pure functions of the step: radius, learning rate.

`EPSILON_SCHEDULES` and `SCHEDULES` are their registries. An epoch is `steps_per_epoch` optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi
from types import MappingProxyType
from typing import Protocol

SMOOTHED_SHARE, SMOOTHED_EXPONENT = 0.25, 4


def linear_epsilon(step: int, *, steps_per_epoch: int, ramp_epochs: int, epsilon: float) -> float:
    """Radius at a global step: from 0 in a straight line to `epsilon` at the start of the last ramp epoch.

    Args:
        step: 0-based optimizer step.
        steps_per_epoch: > 0.
        ramp_epochs: >= 1; 1 means the full radius from the first step.
        epsilon: final radius in pixel units.
    Raises: ValueError if `ramp_epochs` is below 1.
    Source: HYDRA's code: with 60 ramp epochs and 0.007 it is 0 in epoch 0,
        1.186e-4 after one epoch, 0.007 from epoch 59.
    """
    ramp_steps = _ramp_steps(steps_per_epoch, ramp_epochs)
    return epsilon if step >= ramp_steps else epsilon * step / ramp_steps


def smoothed_epsilon(step: int, *, steps_per_epoch: int, ramp_epochs: int, epsilon: float) -> float:
    """Radius that starts with slope 0: a · step^4 in the first quarter of the ramp, then a straight line.

    The ramp ends where that of `linear_epsilon` does, and `a` makes value and slope continuous: with a
    ramp of n steps, m of them in the first quarter, a = epsilon / (m^3 (4 n - 3 m)).
    Args and raises: as `linear_epsilon`. Source: the schedule of the CROWN-IBP code of Zhang et al.,
        arXiv:1906.06316.
    """
    ramp_steps = _ramp_steps(steps_per_epoch, ramp_epochs)
    if step >= ramp_steps:
        return epsilon
    middle = int(SMOOTHED_SHARE * ramp_steps)
    slope = epsilon * SMOOTHED_EXPONENT / (SMOOTHED_EXPONENT * ramp_steps - (SMOOTHED_EXPONENT - 1) * middle)
    at_middle = slope * middle / SMOOTHED_EXPONENT
    if step >= middle:
        return at_middle + slope * (step - middle)
    return at_middle * (step / middle) ** SMOOTHED_EXPONENT


def epoch_epsilon(step: int, *, steps_per_epoch: int, ramp_epochs: int, epsilon: float) -> float:
    """Radius that `linear_epsilon` has when an epoch starts, for the whole epoch, as in MixTrain.

    With S of the original (`schedule_length`) and e the epoch, it is epsilon · min(e / S, 1), where S is
    `ramp_epochs` - 1: an epoch of the ramp trains at every multiple of epsilon / S, the last at epsilon.
    Args and raises: as `linear_epsilon`. Source: Wang et al., arXiv:1811.02625.
    """
    start = step // steps_per_epoch * steps_per_epoch
    return linear_epsilon(start, steps_per_epoch=steps_per_epoch, ramp_epochs=ramp_epochs, epsilon=epsilon)


def _ramp_steps(steps_per_epoch: int, ramp_epochs: int) -> int:
    if ramp_epochs < 1:
        raise ValueError(f"out of range: {ramp_epochs=}")
    return (ramp_epochs - 1) * steps_per_epoch


def cosine(step: int, *, total: int, steps_per_epoch: int = 1) -> float:  # noqa: ARG001 - schedules are called alike
    """Factor on the learning rate: half a cosine from 1 at step 0 towards 0 at step `total`.

    Source: Loshchilov and Hutter, arXiv:1608.03983, equation 5 without restarts.
    """
    return (1 + cos(pi * step / total)) / 2


def cosine_epoch(step: int, *, total: int, steps_per_epoch: int = 1) -> float:
    """Half a cosine with one value per epoch and an epoch behind, as HYDRA's code has it: (1 + cos(π (e - 1) / E)) / 2.

    Epoch 0 is slightly below 1, epoch 1 is 1, and the last of the E epochs is not 0; a single one is 0 throughout.
    Source: HYDRA's code.
    """
    return (1 + cos(pi * (step // steps_per_epoch - 1) / (total / steps_per_epoch))) / 2


def stepwise(step: int, *, total: int, steps_per_epoch: int = 1) -> float:
    """Factor 1, then 0.1 from the first epoch at or after 3/4 of all epochs, and 0.01 from 9/10 of them.

    Source: HYDRA's code.
    """
    start = step // steps_per_epoch * steps_per_epoch
    if 10 * start >= 9 * total:
        return 0.01
    return 0.1 if 4 * start >= 3 * total else 1.0


def milestone(
    step: int,
    *,
    total: int,  # noqa: ARG001 - schedules are called alike
    steps_per_epoch: int = 1,
    milestones: Mapping[int, float] = MappingProxyType({}),
) -> float:
    """Factor 1, then that of the last of the 0-based epochs `milestones` that has begun."""
    begun = [epoch for epoch in milestones if step // steps_per_epoch >= epoch]
    return milestones[max(begun)] if begun else 1.0


def constant(step: int, *, total: int, steps_per_epoch: int = 1) -> float:  # noqa: ARG001 - schedules are called alike
    """Factor 1 on the learning rate at every step."""
    return 1.0


class Schedule(Protocol):
    """Factor on the learning rate at a 0-based `step` of `total`, the first `warmup_steps` of which warm up."""

    def __call__(
        self,
        step: int,
        *,
        total: int,
        steps_per_epoch: int = 1,
        warmup_steps: int = 0,
        milestones: Mapping[int, float] = MappingProxyType({}),
    ) -> float:
        """Return the factor, in [0, 1]; `milestones` are factors by epoch, for the schedule of that name."""


def _after_warmup(shape: Callable[..., float]) -> Schedule:
    """Put a linear warm-up before `shape`, which then takes place in the steps that remain.

    The factors are 1/w, 2/w, ..., 1 in the w steps of the warm-up: as in Goyal et al., arXiv:1706.02677, section
    2.2, the rate grows by the same amount at each step; none is wasted on a rate of 0. `total` includes them.
    """

    def factor(
        step: int,
        *,
        total: int,
        steps_per_epoch: int = 1,
        warmup_steps: int = 0,
        milestones: Mapping[int, float] = MappingProxyType({}),
    ) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        more = {"milestones": milestones} if milestones else {}
        return shape(step - warmup_steps, total=total - warmup_steps, steps_per_epoch=steps_per_epoch, **more)

    return factor


SCHEDULES: dict[str, Schedule] = {
    "cosine": _after_warmup(cosine),
    "constant": _after_warmup(constant),
    "step": _after_warmup(stepwise),
    "cosine-epoch": _after_warmup(cosine_epoch),
    "milestones": _after_warmup(milestone),
}
EPSILON_SCHEDULES: dict[str, Callable[..., float]] = {
    "linear": linear_epsilon,
    "smoothed": smoothed_epsilon,
    "epoch": epoch_epsilon,
}
