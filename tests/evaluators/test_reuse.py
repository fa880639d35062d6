"""A child's certificates from its parent's ledger, against networks whose smoothed boundary is known."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hydrabench.data.images import Block
from hydrabench.errors import DataError, NonFiniteError
from hydrabench.evaluators import ReuseSettings, SmoothingSettings
from hydrabench.evaluators.reuse import Paired, evaluate_reuse
from hydrabench.evaluators.smoothed import evaluate_smoothed
from hydrabench.smoothing import LostVotes, NoiseSource, Plan, Sampling, slack
from hydrabench.smoothing.noise import NoiseStream

SIGMA, N, M, ALPHA = 0.25, 2000, 800, 0.02
RADII = (0.0, 0.1, 0.2)
SETTINGS = SmoothingSettings(samples=N, n0=30, alpha=ALPHA, radii=RADII)
LEVELS = (100, 122, 127, 131, 134, 140, 150)


class Mean(nn.Module):
    """Class 0 if the mean pixel exceeds `at`: the smoothed boundary is 4 * |mean - at| away at 4 x 4."""

    def __init__(self, at=0.5):
        super().__init__()
        self.at = at

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.full_like(mean, self.at), torch.full_like(mean, -9.0)], dim=1)


def block_of(levels=LEVELS, first=40):
    grey = torch.tensor([float(np.float32(level) / np.float32(255)) for level in levels])
    images = grey.reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    indices = tuple(range(first, first + len(levels)))
    return Block(0, indices, images, torch.zeros(len(levels), dtype=torch.int64), tuple(f"sha{i}" for i in indices))


def ledger_of(network, block, chosen=SETTINGS):
    return {record.index: asdict(record) for record in evaluate_smoothed(network, block, chosen)}


def reusing(chosen=SETTINGS, **changes):
    values = {**chosen.model_dump(), "mode": "reused", "reuse_samples": M}
    return ReuseSettings.model_validate(values | changes)


def run(child, parent, block, chosen, ledger=None, **how):
    ledger = ledger or ledger_of(parent, block)
    return evaluate_reuse(child.eval(), block, chosen, parent=parent, ledger=ledger, **how)


def test_votes_are_compared_on_the_very_noise_of_the_parents_ledger():
    """All of the parent's draws shared: its votes come out again, and each lost vote is counted by hand."""
    parent, child, block = Mean().eval(), Mean(0.51).eval(), block_of()
    ledger = ledger_of(parent, block)
    chosen = reusing(reuse_samples=N, radii=(0.0, 9.0))
    for row, record in enumerate(run(child, parent, block, chosen, ledger)):
        known, image = ledger[record.index], block.images[row]
        assert (record.selected, record.parent_looks) == (known["selected"], [[N, known["count"]]])
        if record.certificate == "none":
            assert known["abstain"]
            continue
        stream = NoiseStream(
            NoiseSource(), image.shape, image.device, sigma=SIGMA, key=(0, "smoothing", "estimate", record.index)
        )
        noise = torch.empty(record.samples, *image.shape)
        stream.read(noise)
        old, new = parent(image + noise).argmax(1), child(image + noise).argmax(1)
        lost = int(((old == record.selected) & (new != record.selected)).sum())
        assert (record.lost, record.disagreements) == (lost, int((old != new).sum()))
        assert record.count == int(((old == record.selected) & (new == record.selected)).sum())
        assert record.samples < N or record.count + record.lost == known["count"]
        assert record.looks[-1] == [record.samples, lost]


def test_bounds_shares_and_passes_add_up():
    parent, block = Mean().eval(), block_of((*LEVELS, 127.5))
    records = run(Mean(0.502), parent, block, reusing())
    rule = LostVotes(Plan(M, ALPHA / 2, SIGMA, RADII))
    assert {record.certificate for record in records} == {"none", "reused"}
    assert max(record.lost for record in records) > 0
    for record in records:
        assert (record.alpha_parent, record.alpha_lost, record.alpha_direct) == (ALPHA / 2, ALPHA / 2, 0)
        assert record.passes == 2 * record.samples
        assert (record.mode, record.alpha_spent) == ("reused", ALPHA)
        if record.certificate == "reused":
            assert record.p_lower == max(rule.bound(n, lost, record.parent_p_lower) for n, lost in record.looks)
        if record.abstain:
            assert (record.prediction, record.radius, record.radius_linf) == (-1, 0.0, 0.0)
        else:
            assert record.prediction == record.selected
            assert record.radius_linf == record.radius / 4
    assert sum(record.seconds for record in records) > 0


def test_where_the_parent_abstains_the_child_abstains_without_a_draw():
    (record,) = run(Mean(), Mean().eval(), block_of((127.5,)), reusing())
    assert (record.certificate, record.abstain, record.passes, record.samples) == ("none", True, 0, 0)


def test_no_radius_exceeds_the_childs_distance_to_its_boundary():
    """60 images with alpha = 0.02; 7 or more false ones have probability below 1e-4."""
    block = block_of(tuple(np.linspace(110, 146, 60)))
    parent, child = Mean().eval(), Mean(0.506).eval()
    records = run(child, parent, block, reusing())
    distances = [4 * abs(float(image.mean()) - 0.506) for image in block.images]
    assert sum(record.radius > far for record, far in zip(records, distances, strict=True)) <= 6
    assert sum(not record.abstain for record in records) > 20
    assert any(record.radius > 0.1 for record in records)


def timeless(records):
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("rigor", ["standard", "discrete"])
def test_records_depend_neither_on_the_batch_nor_on_who_shares_it(rigor):
    chosen = SmoothingSettings(samples=N, n0=30, alpha=ALPHA, radii=RADII, rigor=rigor)
    parent, child, block = Mean().eval(), Mean(0.502).eval(), block_of()
    ledger = ledger_of(parent, block, chosen)
    wanted = reusing(chosen)
    together = timeless(run(child, parent, block, wanted, ledger))
    assert together == timeless(run(child, parent, block, wanted, ledger, sampling=Sampling(batch=7)))
    for row, index in enumerate(block.indices):
        alone = block_of((LEVELS[row],), first=index)
        assert timeless(run(child, parent, alone, wanted, ledger)) == together[row : row + 1]


def test_integer_noise_costs_its_slack_once_and_needs_8_bit_images():
    chosen = SmoothingSettings(samples=N, n0=30, alpha=ALPHA, radii=(9.0,), rigor="discrete")
    parent, block = Mean().eval(), block_of((160,))
    (record,) = run(Mean(), parent, block, reusing(chosen), ledger_of(parent, block, chosen))
    exact = LostVotes(Plan(M, ALPHA / 2, SIGMA, (9.0,)))
    best = max(exact.bound(n, lost, record.parent_p_lower) for n, lost in record.looks)
    assert record.p_lower == pytest.approx(best - slack(SIGMA, 16), abs=1e-15)
    assert best > record.p_lower
    with pytest.raises(DataError, match="needs 8-bit images"):
        run(Mean(), parent, block_of((160.3,)), reusing(chosen), ledger_of(parent, block, chosen))


def test_a_pair_of_networks_says_what_both_voted():
    """Means 0.40, 0.52, 0.60 against boundaries 0.5 and 0.55: both class 1; the parent 0, the child 1; both 0."""
    pair = Paired(Mean(), Mean(0.55)).eval()
    x = torch.tensor([0.4, 0.52, 0.6]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert pair(x).argmax(1).tolist() == [1, 3 + 0, 0]


@pytest.mark.parametrize("which", ["parent", "child"])
def test_a_nan_of_either_network_names_the_image(which):
    class Broken(Mean):
        def forward(self, x):
            return super().forward(x) * torch.nan

    block, good, bad = block_of((160,), first=12), Mean().eval(), Broken().eval()
    child, parent = (bad, good) if which == "child" else (good, bad)
    with pytest.raises(NonFiniteError, match="image 12: "):
        evaluate_reuse(child, block, reusing(), parent=parent, ledger=ledger_of(good, block))


def test_train_mode_of_either_network_is_refused():
    block, good = block_of((160,)), Mean().eval()
    for child, parent in ((Mean(), good), (good, Mean())):
        with pytest.raises(ValueError, match="eval mode"):
            evaluate_reuse(child, block, reusing(), parent=parent, ledger=ledger_of(good, block))


@pytest.mark.parametrize("gone", [{"direct": True}, {"parent_mode": "adaptive"}])
def test_ledgers_of_what_did_not_pay_are_refused_in_one_line(gone):
    assert reusing(direct=False, parent_mode="cohen").protocol.startswith("smoothing-reuse-")
    with pytest.raises(ValidationError, match=r"reuse is for parents of mode cohen now, .*; certify anew"):
        reusing(**gone)
