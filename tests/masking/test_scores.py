"""How scores begin: formulas, SNIP by hand, and that nothing but the generator decides what is drawn."""

from __future__ import annotations

import copy
from math import log, sqrt
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.masking import (
    SCORE_INITS,
    attach_masks,
    prunable_layers,
    rescale_weights,
    score_masks,
    set_phase,
    share_budget,
    snip_scores,
    top_k_mask,
)
from hydrabench.recipes.phases import Scores

# A convolution with fan-in 4 · 9 = 36 and fan-out 600 · 9 = 5400: (standard deviation, bound) of each distribution.
FORMULAS = {
    "kaiming_normal": (sqrt(2 / 36), None),
    "kaiming_uniform": (sqrt(2 / 36), sqrt(6 / 36)),
    "xavier_normal": (sqrt(2) * sqrt(2 / 5436), None),
    "xavier_uniform": (sqrt(2) * sqrt(2 / 5436), sqrt(2) * sqrt(6 / 5436)),
}


def network() -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layers


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 10


def drawn(name: str, seed: int) -> dict[str, torch.Tensor]:
    return SCORE_INITS[name](network(), torch.Generator().manual_seed(seed), batch())


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_recipe_may_name_exactly_the_initialisations_there_are():
    assert set(get_args(Scores)) == set(SCORE_INITS)


@pytest.mark.parametrize("name", SCORE_INITS)
def test_scores_have_the_shapes_of_the_weights_and_only_the_generator_decides(name):
    torch.manual_seed(1)
    first = drawn(name, seed=0)
    torch.manual_seed(2)
    again, other = drawn(name, seed=0), drawn(name, seed=1)
    shapes = {layer: found.weight.shape for layer, found in prunable_layers(network()).items()}
    assert {layer: scores.shape for layer, scores in first.items()} == shapes
    assert all(scores.isfinite().all() and not scores.requires_grad for scores in first.values())
    assert same(first, again)
    assert same(first, other) == (name in ("scaled", "snip"))


@pytest.mark.parametrize("name", FORMULAS)
def test_drawn_scores_follow_their_formula(name):
    """21600 draws: their standard deviation is off by about 0.5%, and the largest of a uniform is near the bound."""
    layers = nn.Sequential(nn.Conv2d(4, 600, 3))
    scores = SCORE_INITS[name](layers, torch.Generator().manual_seed(0), batch())["0"]
    deviation, bound = FORMULAS[name]
    assert scores.std().item() == pytest.approx(deviation, rel=0.02)
    assert scores.mean().item() == pytest.approx(0, abs=0.03 * deviation)
    if bound is None:
        assert scores.abs().max() > 3 * deviation
    else:
        assert 0.99 * bound < scores.abs().max() <= bound


def test_snip_scores_of_two_weights_worked_by_hand():
    """x = 2 and w = (1 + ln(3) / 2, 1) give the logits (2 + ln 3, 2) and the probabilities (3/4, 1/4). For the label 0,
    dL/dlogits = (-1/4, 1/4), dL/dw = (-1/2, 1/2), and |dL/dw · w| = (1/2 + ln(3) / 4, 1/2)."""
    layer = nn.Sequential(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[1 + log(3) / 2], [1.0]]))
    scores = snip_scores(layer, torch.tensor([[2.0]]), torch.tensor([0]))["0"]
    assert scores.flatten().tolist() == pytest.approx([0.5 + log(3) / 4, 0.5], rel=1e-6)


def test_snip_is_the_gradient_of_any_scores_while_all_weights_are_kept():
    """The original's way: masks of density 1 on Kaiming scores, one backward pass, |dL/ds|."""
    x, y = batch()
    masked = network().train()
    attach_masks(masked, 1.0, scores=drawn("kaiming_normal", seed=5))
    set_phase(masked, "prune")
    nn.functional.cross_entropy(masked(x), y).backward()
    found = snip_scores(network(), x, y)
    for name, mask in score_masks(masked).items():
        torch.testing.assert_close(found[name], mask.scores.grad.abs())


def test_snip_leaves_the_network_as_it_was():
    subject = network().eval()
    before = copy.deepcopy(subject.state_dict())
    snip_scores(subject, *batch())
    assert same(before, subject.state_dict())
    assert not any(module.training for module in subject.modules())
    assert all(parameter.grad is None for parameter in subject.parameters())


def test_rescaling_multiplies_weights_once_by_one_over_root_k_and_leaves_the_rest():
    """1 / sqrt(1/4) = 2, not the original's 4 (pitfall P13)."""
    before, after, mixed = network(), network(), network()
    rescale_weights(after, 0.25)
    assert torch.equal(after[0].weight, before[0].weight * 2)
    assert torch.equal(after[4].weight, before[4].weight * 2)
    assert torch.equal(after[4].bias, before[4].bias)
    assert torch.equal(after[1].weight, before[1].weight)
    rescale_weights(mixed, {"0": 1.0, "4": 0.0625})
    assert torch.equal(mixed[0].weight, before[0].weight)
    assert torch.equal(mixed[4].weight, before[4].weight * 4)


# Selecting the largest --------------------------------------------------------------------------

ORDINARY = st.floats(width=32, allow_nan=False)  # also subnormal, huge, infinite
TIED = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 0.5, -0.5, 3e38, -3e38, float("inf"), -float("inf")])


def topk_mask(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """What `topk` alone would keep, of equals at the boundary, too."""
    mask = torch.zeros_like(scores).flatten()
    mask[scores.abs().flatten().topk(kept, sorted=False).indices] = 1
    return mask.view_as(scores)


@settings(max_examples=150)
@given(
    values=st.one_of(st.lists(ORDINARY, max_size=40), st.lists(TIED, max_size=40), st.lists(ORDINARY | TIED)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_for_every_count_the_mask_is_that_of_a_full_sort_and_of_topk(values, dtype):
    scores = torch.tensor(values, dtype=torch.float32).to(dtype)
    order = scores.abs().argsort(descending=True)
    ranked = scores.abs()[order].tolist()
    for kept in range(len(values) + 1):
        mask = top_k_mask(scores, kept)
        assert mask.dtype == dtype
        assert torch.equal(mask, topk_mask(scores, kept))
        assert sorted(scores.abs()[mask.bool()].tolist(), reverse=True) == ranked[:kept]
        if kept in (0, len(values)) or ranked[kept - 1] > ranked[kept]:  # only then is there one way to choose
            assert mask.nonzero().flatten().tolist() == sorted(order[:kept].tolist())


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_a_nan_counts_as_the_largest_of_all_as_it_does_for_topk(kept):
    scores = torch.tensor([1.0, torch.nan, -3.0, 2.0])
    assert top_k_mask(scores, kept).nonzero().flatten().tolist() == sorted([1, 2, 3, 0][:kept])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.001])
def test_a_layer_of_a_hundred_thousand_is_selected_as_a_full_sort_would(ties, density):
    """With the scores rounded to two digits, hundreds of equals lie at every boundary, and `topk` chooses of them."""
    scores = torch.randn(200, 50, 10, generator=torch.Generator().manual_seed(3)).transpose(0, 2)
    scores = (scores * 100).round() / 100 if ties else scores
    kept = int(density * 100_000)
    mask = top_k_mask(scores, kept)
    assert int(mask.sum()) == kept
    assert torch.equal(mask, topk_mask(scores, kept))
    boundary = scores.abs().flatten().sort(descending=True).values[kept - 1]
    assert torch.equal(mask[scores.abs() != boundary], (scores.abs() > boundary)[scores.abs() != boundary].float())
    assert (int((scores.abs() == boundary).sum()) > 1) == ties


def test_which_of_equals_are_kept_depends_on_the_scores_alone():
    """Not on the number of threads, on where the numbers lie in memory, or on their shape."""
    scores = (torch.randn(300_000, generator=torch.Generator().manual_seed(5)) * 4).round()
    first = top_k_mask(scores, 100_000)
    boundary = scores.abs()[first.bool()].min()
    assert int((scores.abs() >= boundary).sum()) > 100_000, "some of the equals are left out"
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            assert torch.equal(top_k_mask(scores, 100_000), first)
    finally:
        torch.set_num_threads(threads)
    elsewhere = torch.cat([torch.zeros(3), scores])[3:]
    assert torch.equal(top_k_mask(elsewhere, 100_000), first)
    assert torch.equal(top_k_mask(scores.view(100, 30, 100), 100_000).flatten(), first)


def test_the_slower_way_is_taken_only_where_equals_meet_at_the_boundary(monkeypatch):
    """|s| is 4, 3, 2, 2, 1: only for three kept is one of two equals left out."""
    calls = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda *given, **named: calls.append(1) or topk(*given, **named))
    slower = []
    for kept in range(1, 6):
        calls.clear()
        top_k_mask(torch.tensor([2.0, -4.0, 1.0, 3.0, -2.0]), kept)
        slower += [kept] * len(calls)
    assert slower == [3]


def test_a_mask_and_a_shared_budget_agree_on_where_the_boundary_lies():
    scores = torch.randn(3, 1000, generator=torch.Generator().manual_seed(4))
    mask = top_k_mask(scores, 700)
    assert share_budget(list(scores), 700) == mask.sum(1).int().tolist()
