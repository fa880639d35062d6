"""AutoAttack: upstream's verdict, our bookkeeping, and no trace of it left behind."""

from __future__ import annotations

import logging
import random
import sys
from dataclasses import asdict, replace
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.attacks import margin
from hydrabench.data.images import Block
from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.evaluators import AutoAttackSettings, autoattack
from hydrabench.evaluators.autoattack import ENSEMBLE, block_seed, evaluate_autoattack

EPSILON = {"linf": "0.08", "l2": "0.3"}
NAMES = {"linf": "Linf", "l2": "L2"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def as_block(images, labels, number=3, first=300):
    indices = tuple(range(first, first + len(labels)))
    return Block(number, indices, images, labels, tuple(f"sha{index}" for index in indices))


@cache
def problem(classes=10):
    """A small network trained for a moment on noisy copies of random pictures, and ten fresh copies."""
    generator = rng(1)
    prototypes = torch.rand(classes, 1, 6, 6, generator=generator) * 0.6 + 0.2

    def sample(count):
        labels = torch.randint(classes, (count,), generator=generator)
        return (prototypes[labels] + 0.1 * torch.randn(count, 1, 6, 6, generator=generator)).clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(54, classes)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        images, labels = sample(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.zero_grad(set_to_none=True)
    images, labels = sample(10)
    labels[0] = (labels[0] + 1) % classes
    return network.eval(), as_block(images, labels)


def linear_network(weight):
    network = nn.Sequential(nn.Flatten(), nn.Linear(*reversed(weight.shape))).eval().to(weight.dtype)
    with torch.no_grad():
        network[1].weight.copy_(weight)
        network[1].bias.zero_()
    return network


class Shortened(AutoAttack):
    """The standard ensemble with FAB cut to 20 of 100 iterations and Square to 100 of 5000 queries, to save time."""

    def __init__(self, *arguments, **names):
        super().__init__(*arguments, **names)
        self.fab.n_iter, self.square.n_queries = 20, 100


@cache
def run(norm):
    """Our records, and whether everything global and every parameter is as before."""
    network, block = problem()
    before = global_state()
    with mock.patch("pyautoattack.AutoAttack", Shortened):
        records = evaluate_autoattack(network, block, AutoAttackSettings(norm=norm, epsilon=EPSILON[norm]))
    untouched = all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    return records, untouched and before == global_state()


def global_state():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002  (it is the legacy state that others share)
    return torch.get_rng_state().tolist(), numpys, random.getstate(), sys.gettrace()


@pytest.mark.parametrize("norm", NAMES)
def test_the_verdict_is_that_of_the_plain_standard_run(norm):
    """Upstream's own driver with the block's seed."""
    network, block = problem()
    records, _ = run(norm)
    with torch.random.fork_rng():
        plain = Shortened(
            network, norm=NAMES[norm], eps=float(EPSILON[norm]), seed=block_seed(0, 3), version="standard"
        )
        points, _ = plain.run_standard_evaluation(block.images, block.labels, batch_size=100)
    robust = (network(points).argmax(1) == block.labels).tolist()
    network.zero_grad(set_to_none=True)
    assert [record.robust for record in records] == robust
    assert 0 < sum(robust) < 9


@pytest.mark.parametrize("norm", NAMES)
def test_records_say_what_broke_the_image(norm):
    network, block = problem()
    records, _ = run(norm)
    assert [record.index for record in records] == list(block.indices)
    assert [record.prediction for record in records] == network(block.images).argmax(1).tolist()
    for record in records:
        assert record.robust == (record.broken_by is None) == (record.margin is None)
        assert record.broken_by in {None, "clean", *ENSEMBLE}
        assert record.step == (0 if record.broken_by == "clean" else None)
        assert record.robust or record.margin <= 0
    assert records[0].broken_by == "clean"
    assert records[0].margin == pytest.approx(margin(network(block.images), block.labels)[0].item())
    assert "apgd-ce" in {record.broken_by for record in records}


@pytest.mark.parametrize("norm", NAMES)
def test_global_state_and_parameters_are_left_as_found(norm):
    _, untouched = run(norm)
    assert untouched


def test_upstreams_warnings_are_silent_and_its_logger_is_given_back(monkeypatch, caplog, capfd):
    """It warns of every batch with a zero gradient, and a constant network has no other."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    block = as_block(torch.full((2, 1, 6, 6), 0.5), torch.tensor([0, 0]))
    with caplog.at_level(logging.DEBUG):
        records = evaluate_autoattack(linear_network(torch.zeros(4, 36)), block, AutoAttackSettings(epsilon="0.1"))
        assert caplog.records == []
        logging.getLogger("auto-attack").warning("heard again")
        assert [record.message for record in caplog.records] == ["heard again"]
    assert [record.robust for record in records] == [True, True]
    assert capfd.readouterr() == ("", "")


def test_parameters_that_did_not_require_gradients_still_do_not():
    network = linear_network(torch.eye(4).repeat(1, 9))
    network[1].bias.requires_grad_(False)
    images = torch.full((1, 1, 6, 6), 0.5)
    evaluate_autoattack(network, as_block(images, torch.tensor([2])), AutoAttackSettings(epsilon="0.1"))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, False]


def test_a_linear_network_is_judged_by_the_closed_form():
    """Robust iff (w_y - w_j)·x > eps * ‖w_y - w_j‖_1 for every other j; no pixel comes near 0 or 1."""
    weight = torch.randn(4, 36, generator=rng(5), dtype=torch.float64)
    network = linear_network(weight)
    images = torch.rand(12, 1, 6, 6, generator=rng(6)).double() * 0.4 + 0.3
    labels = network(images).argmax(1)
    gaps = (weight[labels][:, None] - weight[None]).abs().sum(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / gaps).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[5:7].mean().item()
    assert (reach / epsilon - 1).abs().min() > 0.002
    records = evaluate_autoattack(network, as_block(images, labels), AutoAttackSettings(epsilon=str(round(epsilon, 9))))
    assert [record.robust for record in records] == (reach > epsilon).tolist()


def test_each_block_and_each_seed_has_a_stream_of_its_own():
    seeds = {block_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert block_seed(0, 3) == block_seed(0, 3)


class Starts(nn.Module):
    """Class 0 unless the image moves by more than nothing: broken by any random start, which it keeps."""

    def __init__(self, image):
        super().__init__()
        self.image = image
        self.seen = []
        self.eval()

    def forward(self, x):
        self.seen.append(x.detach().clone())
        moved = (x - self.image).flatten(1).abs().sum(1)
        return torch.stack([0.01 - moved, moved * 0, moved * 0 - 1, moved * 0 - 2], dim=1)


def test_the_start_of_the_attack_follows_seed_and_block():
    def first_start(seed, number):
        image = torch.full((1, 1, 6, 6), 0.5)
        network = Starts(image)
        block = as_block(image, torch.tensor([0]), number=number)
        (record,) = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1", seed=seed))
        assert (record.prediction, record.broken_by) == (0, "apgd-ce")
        return next(points for points in network.seen if not torch.equal(points, image))

    start = first_start(0, 0)
    torch.rand(3)
    assert torch.equal(first_start(0, 0), start)
    assert not torch.equal(first_start(0, 1), start)
    assert not torch.equal(first_start(1, 0), start)


def fake_ensemble(perturb):
    """Stand in for `_ensemble`: four times the same attack."""

    def ensemble(*arguments, **names):
        return dict.fromkeys(ENSEMBLE, perturb)

    return ensemble


def test_a_point_outside_the_ball_is_projected_before_it_is_judged(monkeypatch):
    """The logits are the mean m and `rival`; the "attack" returns m = 0, the ball allows 0.5 - 0.1 = 0.4.

    A rival of 0.3 wins at 0 but not at 0.4; a rival of 0.45 wins there by 0.05.
    """

    def blacken(x, y):
        return torch.zeros_like(x)

    monkeypatch.setattr(autoattack, "_ensemble", fake_ensemble(blacken))
    network = linear_network(torch.tensor([1 / 36, 0, 0, 0])[:, None].repeat(1, 36))
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    verdicts = {}
    for rival in (0.3, 0.45):
        with torch.no_grad():
            network[1].bias[1] = rival
        (verdicts[rival],) = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))
    assert (verdicts[0.3].robust, verdicts[0.3].margin) == (True, None)
    assert verdicts[0.45].broken_by == "apgd-ce"
    assert verdicts[0.45].margin == pytest.approx(-0.05, abs=1e-6)


def test_a_claim_that_a_fresh_forward_denies_does_not_count(monkeypatch):
    def unchanged(x, y):
        return x.clone()

    monkeypatch.setattr(autoattack, "_ensemble", fake_ensemble(unchanged))
    network, block = problem()
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))
    assert [record.broken_by for record in records] == ["clean"] + [None] * 9


def test_attacks_run_in_order_on_what_is_left(monkeypatch):
    """Each fake attack turns the first of its images black, which class 3 is the answer to."""
    network = linear_network(torch.zeros(4, 36))
    with torch.no_grad():
        network[1].weight[0] = 1.0
        network[1].bias[3] = 1.0
    sizes = []

    def blacken_the_first(x, y):
        sizes.append(len(x))
        return torch.cat([torch.zeros_like(x[:1]), x[1:]])

    monkeypatch.setattr(autoattack, "_ensemble", fake_ensemble(blacken_the_first))
    block = as_block(torch.full((6, 1, 6, 6), 0.5), torch.tensor([0, 1, 0, 0, 0, 0]))
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.5"))
    assert [record.broken_by for record in records] == ["apgd-ce", "clean", "apgd-t", "fab-t", "square", None]
    assert sizes == [5, 4, 3, 2]


@pytest.mark.parametrize(("classes", "targets"), [(5, 4), (9, 8), (10, 9), (12, 9)])
def test_the_settings_are_upstreams_standard_but_for_classes_that_do_not_exist(monkeypatch, classes, targets):
    """Nine targets, as in the paper; with fewer than ten classes, upstream would index past the last one."""
    made = []

    class Spy(AutoAttack):
        def __init__(self, *arguments, **names):
            super().__init__(*arguments, **names)
            made.append(self)

    monkeypatch.setattr("pyautoattack.AutoAttack", Spy)
    network = linear_network(torch.randn(classes, 36, generator=rng(classes)) * 0.01)
    images = torch.rand(4, 1, 6, 6, generator=rng(0))
    block = as_block(images, network(images).argmax(1))
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.5"))
    assert not any(record.robust for record in records)
    (attack,) = made
    assert (attack.apgd.n_iter, attack.apgd.n_restarts, attack.apgd.loss, attack.apgd.eot_iter) == (100, 1, "ce", 1)
    assert (attack.apgd_targeted.n_iter, attack.apgd_targeted.n_restarts) == (100, 1)
    assert (attack.fab.n_iter, attack.fab.n_restarts, attack.fab.targeted) == (100, 1, True)
    assert (attack.square.n_queries, attack.square.n_restarts) == (5000, 1)
    assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == targets
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    assert {part.seed for part in parts} == {block_seed(0, 3)}


@pytest.mark.parametrize("norm", NAMES)
def test_at_epsilon_zero_robust_means_right(monkeypatch, norm):
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    network, block = problem(classes=4)
    records = evaluate_autoattack(network, block, AutoAttackSettings(norm=norm, epsilon=0))
    assert [record.broken_by for record in records] == ["clean"] + [None] * 9


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    network, block = problem()
    with pytest.raises(HydrabenchError, match="not installed; run: pip install pyautoattack"):
        evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))


def refusal(network, images, norm="linf"):
    block = as_block(images, torch.zeros(len(images), dtype=torch.int64))
    with pytest.raises(HydrabenchError) as caught:
        evaluate_autoattack(network, block, AutoAttackSettings(norm=norm, epsilon="0.1"))
    return str(caught.value)


def test_too_few_classes_are_refused():
    message = refusal(linear_network(torch.randn(3, 36)), torch.rand(2, 1, 6, 6))
    assert "at least 4 classes" in message
    assert "got 3; use --attack pgd" in message


def test_images_too_small_for_square_under_l2_are_refused():
    assert "at least 5 x 5 pixels, got (4, 6)" in refusal(
        linear_network(torch.randn(4, 24)), torch.rand(2, 1, 4, 6), norm="l2"
    )


def test_probabilities_instead_of_logits_are_refused():
    network = nn.Sequential(linear_network(torch.randn(4, 36)), nn.Softmax(dim=1)).eval()
    assert "let it return logits" in refusal(network, torch.rand(2, 1, 6, 6))


def test_a_randomized_network_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] + 0.01 * torch.rand(len(x), 4)

    assert "different logits for the same images" in refusal(Noisy().eval(), torch.rand(2, 1, 6, 6))


def test_a_nan_met_during_the_attack_stops_the_run():
    class Cliff(nn.Module):
        def forward(self, x):
            highest = x.amax((1, 2, 3))
            return torch.stack([torch.where(highest > 0.55, torch.nan, highest + n) for n in range(4)], dim=1)

    images = torch.full((1, 1, 6, 6), 0.5)
    with pytest.raises(NonFiniteError, match="block 3: a logit is NaN or infinite during AutoAttack"):
        evaluate_autoattack(Cliff().eval(), as_block(images, torch.tensor([3])), AutoAttackSettings(epsilon="0.1"))


def test_both_precisions_agree():
    network, block = problem()
    double = replace(block, images=block.images.double())
    chosen = AutoAttackSettings(epsilon="0.3")
    single_records = evaluate_autoattack(network, block, chosen)
    double_records = evaluate_autoattack(network.double(), double, chosen)
    network.float()
    assert [record.broken_by for record in double_records] == [record.broken_by for record in single_records]


def test_images_in_another_memory_layout_get_the_same_records():
    """Decoded colour images may lie channels last in memory, where upstream's views of the gradient fail."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.rand(6, 3, 6, 6, generator=rng())
    labels = network(images).argmax(1)
    settings = AutoAttackSettings(epsilon="1/255")
    records = [
        [{**asdict(record), "seconds": 0} for record in evaluate_autoattack(network, as_block(x, labels), settings)]
        for x in (images, images.contiguous(memory_format=torch.channels_last))
    ]
    assert any(record["robust"] for record in records[0])
    assert [(record["index"], record["robust"]) for record in records[0]] == [
        (record["index"], record["robust"]) for record in records[1]
    ]
