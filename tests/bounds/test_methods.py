from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import (
    BOUNDS,
    class_margins,
    crown,
    crown_ibp_margins,
    intermediate,
    interval_bounds,
    prepared,
)
from hydrabench.bounds.crown import crown_ibp_rows
from hydrabench.bounds.ibp import interval_rows
from hydrabench.bounds.specification import image_bytes, pose, solved
from hydrabench.masking import attach_masks, bake_masks, shared_masks

seeds = st.integers(0, 10_000)
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)


def clean_margins(logits, y):
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others.max(1).values


def points(x, epsilon, rng):
    """Random points and corners of the L-infinity ball, inside [0, 1]."""
    for _ in range(6):
        step = 2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1
        yield (x + epsilon * step).clamp(0, 1)
        yield (x + epsilon * step.sign()).clamp(0, 1)


def pixel(value):
    return torch.tensor(value).view(-1, 1, 1, 1)


def first_logit_is_the_pixel():
    """Logits (x, 0) of one pixel x."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [0.0]])
    return nn.Sequential(nn.Flatten(), layer)


@every_bound
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_no_images_there_are_no_margins(tiny_problem, tiny_dag, bound, norm):
    for network, x, y, _ in (tiny_problem(1), tiny_dag(1)):
        for taken in (network, prepared(network)):
            found = bound(taken, x[:0], y[:0], 0.1, norm=norm)
            assert (found.shape, found.dtype) == ((0,), x.dtype)


@every_bound
@settings(max_examples=48)
@given(seed=seeds, epsilon=st.floats(0, 0.3))
def test_no_sampled_point_has_a_smaller_margin_than_the_bound(tiny_problem, bound, seed, epsilon):
    network, x, y, rng = tiny_problem(seed)
    lower = bound(network, x, y, epsilon)
    assert lower.shape == (3,)
    for point in points(x, epsilon, rng):
        assert (lower <= clean_margins(network(point), y) + 1e-9).all()


@every_bound
@settings(max_examples=60)
@given(seed=seeds, epsilon=st.floats(0, 0.4))
def test_no_sampled_point_has_a_smaller_margin_where_values_branch_and_pool(tiny_dag, bound, seed, epsilon):
    network, x, y, rng = tiny_dag(seed)
    torch.testing.assert_close(bound(network, x, y, 0.0), clean_margins(network(x), y), rtol=1e-6, atol=1e-6)
    lower = bound(network, x, y, epsilon)
    for point in points(x, epsilon, rng):
        assert (lower <= clean_margins(network(point), y) + 1e-9).all()


@every_bound
@settings(max_examples=48)
@given(seed=seeds)
def test_epsilon_zero_gives_back_the_clean_margins(tiny_problem, bound, seed):
    network, x, y, _ = tiny_problem(seed)
    torch.testing.assert_close(bound(network, x, y, 0.0), clean_margins(network(x), y), rtol=1e-6, atol=1e-6)


@every_bound
def test_single_precision_networks_are_bounded_in_single_precision(tiny_problem, bound):
    network, x, y, _ = tiny_problem(7)
    wide = bound(network, x, y, 0.05)
    narrow = bound(network.float(), x.float(), y, 0.05)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


@settings(max_examples=24)
@given(seed=seeds, small=st.floats(0, 0.3), more=st.floats(0, 0.3))
def test_interval_margins_never_rise_with_epsilon(tiny_problem, seed, small, more):
    network, x, y, _ = tiny_problem(seed)
    low, high = (BOUNDS["ibp"](network, x, y, epsilon) for epsilon in (small + more, small))
    assert (low <= high + 1e-12).all()


@every_bound
@settings(max_examples=24)
@given(seed=seeds)
def test_a_verdict_ignores_the_rest_of_its_batch(tiny_problem, bound, seed):
    network, x, y, _ = tiny_problem(seed)
    alone = torch.cat([bound(network, x[i : i + 1], y[i : i + 1], 0.1) for i in range(len(x))])
    torch.testing.assert_close(bound(network, x, y, 0.1), alone, rtol=1e-10, atol=1e-10)


@every_bound
def test_the_box_is_clipped_to_the_pixel_range_and_to_nothing_else(bound):
    """Pixels 0.2 and 0.9, epsilon 1/2: boxes [0, 0.7] and [0.4, 1]; the batch's own range is [0.2, 0.9].

    With logits (x, 0) the margin of label 0 is the lower corner, that of label 1 minus the upper one.
    """
    network, x = first_logit_is_the_pixel(), pixel([0.2, 0.9])
    for label, expected in ((0, [0.0, 0.4]), (1, [-0.7, -1.0])):
        found = bound(network, x, torch.tensor([label, label]), 0.5)
        assert found.tolist() == pytest.approx(expected)


@every_bound
def test_logits_are_not_bounded_apart(bound):
    """Logits (x, x + 1) of a pixel: the margin is exactly 1 however large the ball; bounded apart it would be 1 - 1."""
    layer = nn.Linear(1, 2)
    layer.weight.data, layer.bias.data = torch.ones(2, 1), torch.tensor([0.0, 1.0])
    assert bound(nn.Sequential(nn.Flatten(), layer), pixel([0.5]), torch.tensor([1]), 0.5).item() == pytest.approx(1.0)


@every_bound
def test_a_network_that_does_not_end_in_a_linear_layer_is_bounded_too(bound):
    """Logits (2x, relu(x - 1/2)), an identity at the end, x in [1/4, 1]: smallest margin 2 · 1/4 - 0 for label 0.

    Intervals give 1/2 - 1/2. CROWN: the ReLU on [-1/4, 1/2] lies below 2/3 (x - 1/2) + 1/6, so the margin
    is at least 2x - 2/3 x + 1/6 >= 4/3 · 1/4 + 1/6 = 1/2. The first logit is a ReLU that is always on.
    """
    layer = nn.Linear(1, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[2.0], [1.0]]), torch.tensor([0.0, -0.5])
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Identity())
    expected = {"ibp": 0.0, "symbolic": 0.5, "crown-ibp": 0.5, "crown": 0.5, "cascade": 0.5}
    found = bound(network, pixel([0.625]), torch.tensor([0]), 0.375).item()
    assert found == pytest.approx(expected[next(name for name, entry in BOUNDS.items() if entry is bound)], abs=1e-6)


@every_bound
def test_batch_norm_in_eval_mode_equals_a_fold_into_the_convolution_by_hand(bound):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 4, 3, bias=False).double(), nn.BatchNorm2d(4).double()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.3, 2)
    norm.weight.data.normal_(), norm.bias.data.normal_()
    tail = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16, 3).double())
    folded = nn.Conv2d(2, 4, 3).double()
    factor = norm.weight.data / (norm.running_var + norm.eps).sqrt()
    folded.weight.data = conv.weight.data * factor.view(-1, 1, 1, 1)
    folded.bias.data = norm.bias.data - norm.running_mean * factor
    x, y = torch.rand(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    with_norm = bound(nn.Sequential(conv, norm, tail).eval(), x, y, 0.1)
    torch.testing.assert_close(with_norm, bound(nn.Sequential(folded, tail).eval(), x, y, 0.1))


@every_bound
def test_nan_stays_nan_and_spoils_no_other_image(tiny_problem, bound):
    network, x, y, _ = tiny_problem(0)
    x[1, 0, 2, 2] = torch.nan
    found = bound(network, x, y, 0.1)
    assert found.isnan().tolist() == [False, True, False]
    network[-1].weight.data[2, 3] = torch.nan
    assert bound(network, x, y, 0.1).isnan().all()


@every_bound
@pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
def test_a_negative_radius_is_a_mistake(tiny_problem, bound, epsilon):
    network, x, y, _ = tiny_problem(0)
    with pytest.raises(ValueError, match="epsilon="):
        bound(network, x, y, epsilon)


@every_bound
@pytest.mark.parametrize("network", [nn.Conv2d(1, 3, 1), nn.Sequential(nn.Flatten(), nn.Linear(1, 1)), nn.Linear(1, 3)])
def test_an_output_that_is_not_logits_is_a_mistake(bound, network):
    with pytest.raises(ValueError, match="at least 2 classes"):
        bound(network, pixel([0.5]), torch.tensor([0]), 0.1)


@every_bound
@pytest.mark.parametrize("training", [False, True])
def test_parts_of_a_batch_give_what_the_whole_gives(tiny_problem, bound, training):
    """Batch norm in training mode takes the statistics of the whole batch."""
    network, x, y, _ = tiny_problem(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(training)
    whole = bound(network, x, y, 0.05)
    for memory in (0, 20_000, 10**6):
        torch.testing.assert_close(bound(network, x, y, 0.05, memory=memory), whole)


def test_images_are_taken_together_as_far_as_memory_goes(tiny_problem):
    network, x, y, _ = tiny_problem(0)
    problem = pose(network, x, y, 0.1)
    for memory, sizes in ((1, [1, 1, 1]), (2, [2, 2, 1]), (3, [3, 3, 3]), (30, [3, 3, 3])):
        enough = memory * image_bytes(problem)
        found = solved(problem, lambda part: torch.full_like(part.offset, len(part.y)), memory=enough)
        assert found[:, 0].tolist() == sizes


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("gradients", [False, True])
@settings(max_examples=12)
@given(seed=seeds, epsilon=st.floats(0, 0.2), branching=st.booleans())
@example(seed=36, epsilon=0.3, branching=False)  # where CROWN-IBP over the L2 ball is below intervals
def test_leaving_out_proved_margins_takes_the_larger_bound_of_those_that_are_open(
    tiny_problem, tiny_dag, norm, gradients, seed, epsilon, branching
):
    """And the interval bound of the others, so that it lies between the intervals' and the larger of both."""
    network, x, y, _ = (tiny_dag if branching else tiny_problem)(seed)
    asked = pose(network, x, y, epsilon, norm=norm)
    interval, backward = interval_rows(asked), crown_ibp_rows(asked)
    rows = torch.where(interval > 0, interval, torch.maximum(interval, backward))
    with torch.set_grad_enabled(gradients):
        found = crown_ibp_margins(network, x, y, epsilon, norm=norm, only_open=True)
    torch.testing.assert_close(found, rows.min(1).values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_proved_margins_have_no_rows(tiny_problem, monkeypatch, norm):
    """Every row of a pass backward is of a margin that intervals leave open; without one there is no pass."""
    network, x, y, _ = tiny_problem(4)
    seen, lower, lowest = [], crown._Pass._part, intermediate.IntermediateBounds.lower
    monkeypatch.setattr(crown._Pass, "_part", lambda *args: seen.append(len(args[1])) or lower(*args))
    monkeypatch.setattr(
        intermediate.IntermediateBounds, "lower", lambda *args: seen.append(len(args[2].image)) or lowest(*args)
    )
    few = 0
    for epsilon in (0.0, 0.01, 0.03, 0.1, 0.3):
        seen.clear()
        count = int((interval_rows(pose(network, x, y, epsilon, norm=norm)) <= 0).sum())
        crown_ibp_margins(network, x, y, epsilon, norm=norm, only_open=True)
        assert seen == [count] * (count > 0)
        few += 0 < count < 9
    assert few > 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("pooling", ["avg", "max", "global"])
def test_open_margins_of_an_image_do_not_depend_on_the_other_images(residual_network, pooling, norm):
    """Residual networks in float32, in which the images of a batch have different numbers of open margins."""
    network, x, y, rng = residual_network(pooling)
    more = torch.cat([x, torch.rand(5, *x.shape[1:], generator=rng)])
    labels = torch.cat([y, network(more[3:]).argmax(1)])
    with torch.no_grad():
        for epsilon in (0.001, 0.01):
            found = crown_ibp_margins(network, more, labels, epsilon, norm=norm, only_open=True)
            single = [
                crown_ibp_margins(network, a, b, epsilon, norm=norm, only_open=True)
                for a, b in zip(more.split(1), labels.split(1), strict=True)
            ]
            torch.testing.assert_close(found, torch.cat(single), rtol=1e-5, atol=1e-5)
            small = crown_ibp_margins(network, more, labels, epsilon, norm=norm, only_open=True, memory=1)
            torch.testing.assert_close(found, small, rtol=1e-5, atol=1e-5)


@every_bound
def test_batch_norm_in_training_mode_is_held_at_its_batch_statistics(bound):
    """At epsilon 0 the bounds are the training-mode margins; the running statistics stay as they were."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    ).double()
    x, y = torch.rand(6, 2, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    before = copy.deepcopy(network.state_dict())
    found = bound(network, x, y, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(found, clean_margins(copy.deepcopy(network)(x), y), rtol=1e-7, atol=1e-7)
    assert (bound(network, x, y, 0.1) < found).all()
    assert not torch.allclose(found, bound(network.eval(), x, y, 0.0))


@every_bound
def test_masked_weights_are_bounded_and_not_the_stored_ones(tiny_problem, bound):
    network, x, y, _ = tiny_problem(4)
    dense = bound(network, x, y, 0.05)
    attach_masks(network, 0.3)
    masked = bound(network, x, y, 0.05)
    with shared_masks(network):
        torch.testing.assert_close(bound(network, x, y, 0.05), masked)
    bake_masks(network)
    torch.testing.assert_close(masked, bound(network, x, y, 0.05))
    assert (masked - dense).abs().min() > 1e-3


def test_margins_are_never_below_the_difference_of_bounded_logits(tiny_problem):
    """Merging the last layer with the specification can only gain."""
    network, x, y, _ = tiny_problem(2)
    lower, upper = interval_bounds(network, (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1))
    apart = lower.gather(1, y.unsqueeze(1)) - upper
    merged = class_margins(network, x, y, 0.05, beta=0.0)
    assert (merged >= apart - 1e-12).all()
    assert (merged > apart + 1e-3).any()
