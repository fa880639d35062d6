"""AutoAttack is the authors' own: their points bit for bit, their settings, streams of random numbers from us."""

from __future__ import annotations

from itertools import product
from unittest import mock

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.attacks import upstream
from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import evaluate_autoattack, seed_of
from hydrabench.evaluators.autoattack_settings import ATTACKS
from tests.helpers.autoattack_problems import (
    ENSEMBLE,
    NAMES,
    as_block,
    linear_network,
    problem,
    rng,
)

ALL_NAMES = {**NAMES, "l1": "L1"}


@pytest.mark.parametrize(
    ("norm", "name"),
    [*product(NAMES, [*ENSEMBLE, "fab", "apgd-dlr"]), *product(["l1"], ENSEMBLE)],
)
def test_one_image_alone_is_attacked_as_upstream_attacks_it(norm, name):
    """The same points, bit for bit, where upstream's draws come from the stream that we give it for one image."""
    network, block = problem()
    x, y = block.images[4:5], block.labels[4:5]
    attack = upstream.UpstreamAttack(
        name, "plus" if name in ATTACKS["plus"][1:3] else "standard", norm, 0.05, 10, seed=7,
        targets=AutoAttackSettings(epsilon="0.1", norm=norm).apgd_targets,
    )  # fmt: skip
    stream = upstream.stream(7, name, version=2)
    plain = AutoAttack(upstream.Padded(network), norm=ALL_NAMES[norm], eps=0.05, seed=7, version=attack.version)
    assert plain.apgd_targeted.n_target_classes == attack.targets
    shortened = {"n_queries": 50, "n_iter": 10, "n_iter_orig": 10}
    with torch.random.fork_rng(), mock.patch("pyautoattack.AutoAttack", return_value=plain):
        for part in (plain.apgd, plain.apgd_targeted, plain.fab, plain.square):
            vars(part).update({key: value for key, value in shortened.items() if key in vars(part)})
        found = upstream.attack_points(network, x, y, attack)
        rand, randn = torch.rand, torch.randn
        with (
            mock.patch("torch.rand", lambda shape: rand(tuple(shape), generator=stream)),
            mock.patch("torch.randn", lambda shape: randn(tuple(shape), generator=stream)),
            mock.patch("torch.randn_like", lambda images: randn(tuple(images.shape), generator=stream)),
        ):
            expected = upstream._choose(plain, name)(x, y)
    network.zero_grad(set_to_none=True)
    assert torch.equal(found, expected)


@pytest.fixture
def made(monkeypatch):
    """The attacks that upstream made, by name; none of them moves an image."""
    found, choose = {}, upstream._choose

    def kept(attack, name):
        choose(attack, name)
        found[name] = attack
        return lambda x, y: x.clone()

    monkeypatch.setattr(upstream, "_choose", kept)
    return found


def test_in_l1_the_settings_are_those_of_the_authors_for_l1(made):
    network, block = problem()
    evaluate_autoattack(network, block, AutoAttackSettings(norm="l1", epsilon="0.5"))
    assert tuple(made) == ENSEMBLE
    attack = made["apgd-t"]
    assert attack.apgd.use_largereps
    assert attack.apgd_targeted.use_largereps
    assert (attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes) == (5, 5)
    assert (attack.fab.n_target_classes, attack.square.n_queries) == (9, 5000)


def test_each_block_and_each_seed_has_a_stream_of_its_own_where_the_block_decides():
    settings = [AutoAttackSettings(epsilon="0.1", seed=seed, version=1) for seed in range(20)]
    seeds = {seed_of(one, number) for one in settings for number in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_where_the_image_decides_streams_follow_seed_and_protocol_alone():
    settings = [
        AutoAttackSettings(epsilon="0.1", seed=seed, ensemble=ensemble)
        for seed in range(20)
        for ensemble in ("standard", "plus")
    ]
    assert len({seed_of(one, number) for one in settings for number in range(20)}) == 40


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


@pytest.mark.parametrize("version", [1, 2])
def test_the_start_of_the_attack_follows_the_seed_and_once_followed_the_block(version):
    def first_start(seed, number):
        image = torch.full((1, 1, 6, 6), 0.5)
        network = Starts(image)
        block = as_block(image, torch.tensor([0]), number=number)
        (record,) = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1", seed=seed, version=version))
        assert (record.prediction, record.broken_by) == (0, "apgd-ce")
        return next(points[:1] for points in network.seen if not torch.equal(points[:1], image))

    start = first_start(0, 0)
    torch.rand(3)
    assert torch.equal(first_start(0, 0), start)
    assert torch.equal(first_start(0, 1), start) == (version == 2)
    assert not torch.equal(first_start(1, 0), start)


@pytest.mark.parametrize(("classes", "targets"), [(5, 4), (9, 8), (10, 9), (12, 9)])
def test_the_settings_are_upstreams_standard_but_for_classes_that_do_not_exist(made, classes, targets):
    """Nine targets, as in the paper; with fewer than ten classes, upstream would index past the last one."""
    network = linear_network(torch.randn(classes, 36, generator=rng(classes)) * 0.01)
    images = torch.rand(4, 1, 6, 6, generator=rng(0))
    evaluate_autoattack(network, as_block(images, network(images).argmax(1)), AutoAttackSettings(epsilon="0.5"))
    assert tuple(made) == ENSEMBLE
    attack = made["apgd-ce"]
    assert (attack.apgd.n_iter, attack.apgd.n_restarts, attack.apgd.loss, attack.apgd.eot_iter) == (100, 1, "ce", 1)
    assert (attack.apgd_targeted.n_iter, attack.apgd_targeted.n_restarts) == (100, 1)
    fab = made["fab-t"].fab
    assert (fab.n_iter, fab.n_restarts, fab.targeted) == (100, 1, True)
    assert (attack.square.n_queries, attack.square.n_restarts) == (5000, 1)
    assert made["apgd-t"].apgd_targeted.n_target_classes == fab.n_target_classes == targets
    parts = [
        part for attack in made.values() for part in (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    ]
    assert {part.seed for part in parts} == {seed_of(AutoAttackSettings(epsilon="0.5"), 3)}
