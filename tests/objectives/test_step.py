"""The random numbers of a step do not depend on how its batch is split."""

from __future__ import annotations

import pytest
import torch

from hydrabench.objectives import TrainingStep
from hydrabench.runtime import stream

DRAWS = {
    "normal": TrainingStep.normal,
    "uniform in a box": TrainingStep.uniform,
    "uniform in a ball": lambda step, x: step.uniform(x, norm="l2"),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 7), slice(1, 7, 2)], ids=str)
def test_parts_of_a_batch_draw_the_noise_of_the_whole(draw, rows):
    x = torch.zeros(7, 1, 2, 3, dtype=torch.float64)
    whole = draw(TrainingStep(0.1, 1.0, stream("noise")), x)
    part = draw(TrainingStep(0.1, 1.0, stream("noise"), rows, 7), x[rows])
    assert whole.shape == x.shape
    assert whole.dtype == torch.float64
    assert torch.equal(part, whole[rows])


def test_uniform_points_fill_the_unit_ball():
    """In 4 dimensions the share of the box within half the radius is 1/16, and so is that of the ball."""
    x = torch.zeros(20_000, 1, 2, 2)
    box = TrainingStep(0.1, 1.0, stream("box")).uniform(x).flatten(1).abs().amax(1)
    ball = TrainingStep(0.1, 1.0, stream("ball")).uniform(x, norm="l2").flatten(1).norm(dim=1)
    for lengths in (box, ball):
        assert lengths.max() <= 1
        assert (lengths < 0.5).float().mean().item() == pytest.approx(1 / 16, abs=0.01)


def test_the_memory_of_a_step_is_its_own_unless_given():
    first, second = (TrainingStep(0.1, 1.0, stream("memory")) for _ in range(2))
    first.memory["kept"] = torch.ones(1)
    assert not second.memory
