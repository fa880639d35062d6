"""Radius and learning rate by hand, and what every schedule must do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.objectives import EPSILON_SCHEDULES, SCHEDULES, constant, cosine, linear_epsilon

lengths = st.integers(1, 30)


@pytest.mark.parametrize("name", ["linear", "epoch"])
@pytest.mark.parametrize(("epoch", "epsilon"), [(0, 0), (1, 1.186e-4), (30, 0.003559), (59, 0.007), (199, 0.007)])
def test_the_linear_ramp_is_the_originals_oracle_o7(name, epoch, epsilon):
    """Length 60 and 0.007: 0.007 · epoch / 59."""
    value = EPSILON_SCHEDULES[name](epoch * 10, steps_per_epoch=10, ramp_epochs=60, epsilon=0.007)
    assert value == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize("schedule", EPSILON_SCHEDULES.values(), ids=EPSILON_SCHEDULES)
def test_a_ramp_of_one_epoch_is_the_full_radius_at_once_and_of_none_is_an_error(schedule):
    assert schedule(0, steps_per_epoch=10, ramp_epochs=1, epsilon=0.007) == 0.007
    with pytest.raises(ValueError, match="ramp_epochs=0"):
        schedule(0, steps_per_epoch=10, ramp_epochs=0, epsilon=0.007)


@pytest.mark.parametrize("schedule", EPSILON_SCHEDULES.values(), ids=EPSILON_SCHEDULES)
@settings(max_examples=40)
@given(ramp_epochs=st.integers(2, 40), steps_per_epoch=lengths)
def test_every_ramp_rises_from_zero_to_the_radius_at_the_start_of_its_last_epoch(
    schedule, ramp_epochs, steps_per_epoch
):
    end = (ramp_epochs - 1) * steps_per_epoch
    values = [
        schedule(t, steps_per_epoch=steps_per_epoch, ramp_epochs=ramp_epochs, epsilon=0.3) for t in range(end + 2)
    ]
    assert values[0] == 0
    assert values[end - 1] < values[end] == values[end + 1] == 0.3
    assert values == sorted(values)


def test_the_smoothed_ramp_worked_by_hand():
    """A ramp of 8 steps to 1.4: the middle is step 2, a = 1.4 / (2^3 · (4 · 8 - 3 · 2)) = 1.4 / 208.

    TrainingStep 1: a; step 2: 16 a; from there 4 a · 2^3 = 32 a for each step: 16 a + 6 · 32 a = 208 a at step 8.
    """
    values = [EPSILON_SCHEDULES["smoothed"](t, steps_per_epoch=4, ramp_epochs=3, epsilon=2.08) for t in range(9)]
    assert values == pytest.approx([0, 0.01, 0.16, 0.48, 0.80, 1.12, 1.44, 1.76, 2.08], abs=1e-12)


def test_the_smoothed_ramp_has_no_corner_in_the_middle():
    """Over 1000 steps the slopes of neighbouring steps differ by less than a hundredth of the final slope."""
    values = [EPSILON_SCHEDULES["smoothed"](t, steps_per_epoch=100, ramp_epochs=11, epsilon=1.0) for t in range(1001)]
    slopes = [after - before for before, after in pairwise(values)]
    changes = [abs(after - before) for before, after in pairwise(slopes)]
    assert max(changes) < 0.02 * slopes[-1]
    assert slopes[0] < 1e-6 * slopes[-1]


def test_the_radius_of_an_epoch_stays_through_the_epoch():
    """MixTrain with S = 2, our 3 ramp epochs: 0, then half, then all of it (reference: section 1.5)."""
    values = [EPSILON_SCHEDULES["epoch"](t, steps_per_epoch=2, ramp_epochs=3, epsilon=0.5) for t in range(7)]
    assert values == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert linear_epsilon(1, steps_per_epoch=2, ramp_epochs=3, epsilon=0.5) == 0.125


def test_the_cosine_starts_at_one_passes_a_half_and_ends_near_zero():
    assert cosine(0, total=100) == 1
    assert cosine(50, total=100) == pytest.approx(0.5)
    assert 0 < cosine(99, total=100) < 0.001
    assert constant(7, total=10) == 1


@pytest.mark.parametrize(
    ("epochs", "epoch", "factor"),
    [(100, 0, 0.9998), (100, 1, 1), (100, 99, 9.9e-4), (20, 0, 0.994), (20, 19, 0.0245), (90, 22, 0.872)],
)
def test_the_cosine_of_epochs_is_the_originals_oracle_o9(epochs, epoch, factor):
    """The rates of section 3.4 over their start of 0.1; the last is ImageNet, 23 of 90 epochs."""
    for step in (epoch * 7, epoch * 7 + 6):
        value = SCHEDULES["cosine-epoch"](step, total=epochs * 7, steps_per_epoch=7)
        assert value == pytest.approx(factor, abs=6e-4)


def test_the_steps_come_after_three_quarters_and_nine_tenths_of_the_epochs():
    """Of 30 epochs: 3/4 are 22.5, so the 23rd counts from 0; 9/10 are 27. The rate changes between epochs only."""
    factors = [SCHEDULES["step"](step, total=60, steps_per_epoch=2) for step in range(60)]
    assert factors == [1.0] * 46 + [0.1] * 8 + [0.01] * 6


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_warm_up_grows_evenly_and_then_the_schedule_has_the_rest(schedule):
    """4 of 20 steps: 1/4, 2/4, 3/4, 1; then what 16 steps without a warm-up are."""
    factors = [schedule(step, total=20, steps_per_epoch=2, warmup_steps=4) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == [schedule(step, total=16, steps_per_epoch=2) for step in range(16)]


def test_the_cosine_of_epochs_is_zero_throughout_a_single_epoch():
    """(1 + cos(-π)) / 2: the formula is meant for more."""
    assert SCHEDULES["cosine-epoch"](3, total=5, steps_per_epoch=5) == 0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@settings(max_examples=40)
@given(total=st.integers(2, 40), steps_per_epoch=lengths, data=st.data())
def test_every_factor_is_positive_and_at_most_one(schedule, total, steps_per_epoch, data):
    warmup = data.draw(st.integers(0, total - 2))
    for step in range(total * steps_per_epoch):
        keys = {"steps_per_epoch": steps_per_epoch, "warmup_steps": warmup * steps_per_epoch}
        assert 0 < schedule(step, total=total * steps_per_epoch, **keys) <= 1


def test_milestones_worked_by_hand():
    """Epochs of 10 steps: 1 in epochs 0 and 1, 1/5 in 2 and 3, 1/25 from 4 on; warm-up comes before."""
    factor = SCHEDULES["milestones"]
    found = [
        factor(step, total=60, steps_per_epoch=10, milestones={2: 0.2, 4: 0.04}) for step in (0, 19, 20, 39, 40, 59)
    ]
    assert found == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    warm = [factor(step, total=60, steps_per_epoch=10, warmup_steps=10, milestones={2: 0.2}) for step in (0, 9, 29, 30)]
    assert warm == pytest.approx([0.1, 1, 1, 0.2])
