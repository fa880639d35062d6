"""Schedules as pure functions of the step: radius, learning rate."""

from __future__ import annotations

from math import cos, pi


def linear_epsilon(step: int, *, steps_per_epoch: int, ramp_epochs: int, epsilon: float) -> float:
    """Radius at a global step: from 0 in a straight line to `epsilon` at the start of the last ramp epoch.

    Args:
        step: 0-based optimizer step.
        steps_per_epoch: > 0.
        ramp_epochs: >= 1; 1 means the full radius from the first step.
        epsilon: final radius in pixel units.
    Raises: ValueError if `ramp_epochs` is below 1.
    Source: reference/hydra.md section 1.6; oracle O7: with 60 ramp epochs and 0.007 it is 0 in epoch 0,
        1.186e-4 after one epoch, 0.007 from epoch 59.
    """
    if ramp_epochs < 1:
        raise ValueError(f"out of range: {ramp_epochs=}")
    ramp_steps = (ramp_epochs - 1) * steps_per_epoch
    return epsilon if step >= ramp_steps else epsilon * step / ramp_steps


def cosine(step: int, *, total: int) -> float:
    """Factor on the learning rate: half a cosine from 1 at step 0 towards 0 at step `total`.

    Source: Loshchilov and Hutter, arXiv:1608.03983, equation 5 without restarts.
    """
    return (1 + cos(pi * step / total)) / 2


def constant(step: int, *, total: int) -> float:  # noqa: ARG001 - every schedule is called alike
    """Factor 1 on the learning rate at every step."""
    return 1.0


SCHEDULES = {"constant": constant, "cosine": cosine}
