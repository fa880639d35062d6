"""AutoAttack: upstream's verdict, our bookkeeping, and no trace of it left behind."""

from __future__ import annotations

import logging
import random
import sys
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.attacks import margin, upstream
from hydrabench.data.images import Block
from hydrabench.errors import ConfigError, HydrabenchError, NonFiniteError
from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import attempt, evaluate_autoattack, seed_of
from hydrabench.evaluators.autoattack_settings import ATTACKS, fitted_to_classes, passes_of
from hydrabench.evaluators.concluding import saved_by_cascade
from hydrabench.ledger import Attempt

ENSEMBLE = ATTACKS["standard"]
EPSILON = {"linf": "0.08", "l2": "0.3", "l1": "0.7"}
NAMES = {"linf": "Linf", "l2": "L2"}
ALL_NAMES = {**NAMES, "l1": "L1"}


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
    """The standard ensemble with FAB cut to 20 of 100 iterations and Square to 100 of 5000 queries, to save time.

    In L1 APGD, which starts more often, is cut to 20 iterations.
    """

    def __init__(self, *arguments, **names):
        super().__init__(*arguments, **names)
        self.fab.n_iter, self.square.n_queries = 20, 100
        if self.norm == "L1":
            self.apgd.n_iter_orig = self.apgd_targeted.n_iter_orig = 20


@cache
def run(norm, version=2):
    """Our records, and whether everything global and every parameter is as before."""
    network, block = problem()
    before = global_state()
    settings = AutoAttackSettings(norm=norm, epsilon=EPSILON[norm], version=version)
    with mock.patch("pyautoattack.AutoAttack", Shortened):
        records = evaluate_autoattack(network, block, settings)
    untouched = all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    return records, untouched and before == global_state()


def global_state():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002  (it is the legacy state that others share)
    return torch.get_rng_state().tolist(), numpys, random.getstate(), sys.gettrace()


@pytest.mark.parametrize("norm", NAMES)
def test_the_first_version_of_the_protocol_is_the_plain_standard_run(norm):
    """Upstream's own driver with the block's seed."""
    network, block = problem()
    records, _ = run(norm, version=1)
    settings = AutoAttackSettings(epsilon="0.1", version=1)
    assert (settings.protocol, seed_of(settings, 3)) == ("aa-standard@1", 6901138645166591744)
    with torch.random.fork_rng():
        seed = seed_of(settings, 3)
        plain = Shortened(network, norm=NAMES[norm], eps=float(EPSILON[norm]), seed=seed, version="standard")
        points, _ = plain.run_standard_evaluation(block.images, block.labels, batch_size=100)
    robust = (network(points).argmax(1) == block.labels).tolist()
    network.zero_grad(set_to_none=True)
    assert [record.robust for record in records] == robust
    assert 0 < sum(robust) < 9


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


@pytest.mark.parametrize(
    ("norm", "values"),
    [
        ("linf", {}),
        ("l2", {}),
        ("l1", {"attacks": ("apgd-ce", "square")}),
        ("l2", {"ensemble": "plus", "attacks": ("apgd-dlr", "fab")}),
        ("linf", {"cascade": True}),
    ],
)
def test_a_verdict_does_not_depend_on_the_images_beside_it(monkeypatch, norm, values):
    """To the last bit of the margin: alone, among some, among all, and in another order."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    network, block = problem()
    settings = AutoAttackSettings(norm=norm, epsilon=EPSILON[norm], **values)

    def verdicts(rows):
        records = evaluate_autoattack(network, block.rows(rows), settings)
        return {record.index: (record.broken_by, record.margin) for record in records}

    whole = verdicts(range(10))
    assert len({broken_by for broken_by, _ in whole.values()}) >= 3
    assert None in {broken_by for broken_by, _ in whole.values()}
    for rows in ([7], [9, 3, 2]):
        assert verdicts(rows) == {block.indices[row]: whole[block.indices[row]] for row in rows}


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


@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_a_linear_network_is_judged_by_the_closed_form_in_l1(name):
    """Robust iff (w_y - w_j)·x > eps * max|w_y - w_j| for every other j: one pixel moves, and its room exceeds eps.

    FAB finds that pixel. APGD-T moves several, and needs a tenth more.
    """
    weight = torch.randn(6, 36, generator=rng(5), dtype=torch.float64)
    weight -= weight.mean(1, keepdim=True)  # grey has the same logits everywhere, so that margins are small
    network = linear_network(weight)
    images = torch.rand(8, 1, 6, 6, generator=rng(6)).double() * 0.04 + 0.48
    labels = network(images).argmax(1)
    largest = (weight[labels][:, None] - weight[None]).abs().amax(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / largest).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[3:5].mean().item()
    assert epsilon < 0.48
    settings = AutoAttackSettings(norm="l1", epsilon=str(round(epsilon, 9)), attacks=(name,))
    records = evaluate_autoattack(network, as_block(images, labels), settings)
    found = torch.tensor([record.robust for record in records])
    assert found[reach > epsilon].all()
    assert not found[reach < epsilon * (1 if name == "fab-t" else 0.9)].any()
    assert 2 <= (reach < 0.9 * epsilon).sum() <= 4


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


def every_attack_is(monkeypatch, perturb):
    monkeypatch.setattr(upstream, "_choose", lambda _made, _name: perturb)


def test_a_point_outside_the_ball_is_projected_before_it_is_judged(monkeypatch):
    """The logits are the mean m and `rival`; the "attack" returns m = 0, the ball allows 0.5 - 0.1 = 0.4.

    A rival of 0.3 wins at 0 but not at 0.4; a rival of 0.45 wins there by 0.05.
    """

    def blacken(x, y):
        return torch.zeros_like(x)

    every_attack_is(monkeypatch, blacken)
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

    every_attack_is(monkeypatch, unchanged)
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

    every_attack_is(monkeypatch, blacken_the_first)
    block = as_block(torch.full((6, 1, 6, 6), 0.5), torch.tensor([0, 1, 0, 0, 0, 0]))
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.5"))
    assert [record.broken_by for record in records] == ["apgd-ce", "clean", "apgd-t", "fab-t", "square", None]
    assert sizes == [5, 4, 3, 2]


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


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ensemble", ["standard", "plus"])
def test_networks_of_few_classes_are_judged(monkeypatch, classes, ensemble):
    """A linear network is robust if its margin is above epsilon times the L1 norm of the weights' difference."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    weight = torch.randn(classes, 36, generator=rng(5))
    network = linear_network(weight)
    images = torch.rand(8, 1, 6, 6, generator=rng(6)) * 0.4 + 0.3
    labels = network(images).argmax(1)
    gaps = (weight[labels][:, None] - weight[None]).abs().sum(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / gaps).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[3:5].mean().item()
    settings = fitted_to_classes(AutoAttackSettings(epsilon=str(round(epsilon, 9)), ensemble=ensemble), classes)
    records = evaluate_autoattack(network, as_block(images, labels), settings)
    assert [record.robust for record in records] == (reach > epsilon).tolist()


def test_attacks_that_need_more_classes_are_refused():
    message = refusal(linear_network(torch.randn(3, 36)), torch.rand(2, 1, 6, 6))
    assert "at least 4 classes" in message
    assert "got 3; name the attacks that are defined with --attacks apgd-ce,fab-t,square" in message
    asked = AutoAttackSettings(epsilon="0.1", attacks=("square", "apgd-dlr"))
    with pytest.raises(
        ConfigError, match=r"apgd-dlr compares 3 logits, the network has 2; leave it out of the attacks"
    ):
        fitted_to_classes(asked, 2)


def test_a_cascade_breaks_first_what_ten_steps_of_pgd_break():
    network, block = problem()
    settings = AutoAttackSettings(epsilon="0.5", cascade=True)
    records = evaluate_autoattack(network, block, settings)
    assert {record.broken_by for record in records} == {"clean", "pgd-10"}
    short, _ = attempt(network, block.rows(range(1, 10)), "pgd-10", settings)
    assert [-one.loss for one in short] == [record.margin for record in records[1:]]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.01, "pgd-10 broke 2 of 3 images in 0.03 s; apgd-ce takes 0.5 s an image here, so 0.97 s saved"),
        (0.4, "pgd-10 broke 2 of 3 images in 1.2 s; apgd-ce takes 0.5 s an image here, so 0.2 s lost"),
    ],
)
def test_a_cascade_says_what_it_saves(seconds, said):
    first = [Attempt(image, "pgd-10", image < 2, 0.1, None, seconds) for image in range(3)]
    assert saved_by_cascade([*first, Attempt(2, "apgd-ce", False, -0.1, 1, 0.5)]) == said
    assert saved_by_cascade(first[:2]).startswith("pgd-10 broke 2 of 2 images in")
    assert saved_by_cascade([Attempt(2, "apgd-ce", False, -0.1, 1, 0.5)]) is None


@pytest.mark.parametrize(
    ("name", "ensemble"),
    [
        *((name, "standard") for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")),
        ("apgd-ce", "plus"),
        ("fab", "plus"),
        ("apgd-dlr", "rand"),
        ("clean", "rand"),
    ],
)
def test_an_attack_takes_about_the_passes_that_it_says(name, ensemble):
    """Counted on a network that is constant, so that no image breaks; a gradient costs a pass more."""
    network, passes = linear_network(torch.zeros(5, 36)), [0]
    with torch.no_grad():
        network[1].bias[0] = 1.0

    class Counted(nn.Module):
        def forward(self, x):
            passes[0] += 1
            return network(x)

    settings = AutoAttackSettings(epsilon="0.1", ensemble=ensemble)
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    attempt(Counted().eval(), block, name, settings)
    gradients = {"square": 0, "fab": 2.5, "fab-t": 0.5}.get(name, 1)  # for each forward pass
    assert passes[0] * (1 + gradients) == pytest.approx(passes_of(settings, name, 5), rel=0.05, abs=60)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t"])
def test_in_l1_and_mixed_an_attack_takes_about_the_passes_that_it_says(name):
    network, passes = linear_network(torch.zeros(10, 36)), [0]
    with torch.no_grad():
        network[1].bias[0] = 1.0
    network.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    for values in ({"norm": "l1"}, {"mixed": True}):
        settings, passes[0] = AutoAttackSettings(epsilon="0.1", **values), 0
        attempt(network, block, name, settings)
        backward = 1 / (1 + settings.mixed + (name == "fab-t"))
        assert passes[0] * (1 + backward) == pytest.approx(passes_of(settings, name, 10), rel=0.05, abs=60)


def test_images_too_small_for_square_under_l2_are_refused():
    assert "at least 5 x 5 pixels, got (4, 6); name the other attacks with --attacks apgd-ce,apgd-t,fab-t" in refusal(
        linear_network(torch.randn(4, 24)), torch.rand(2, 1, 4, 6), norm="l2"
    )


def test_a_nan_met_during_the_attack_stops_the_run():
    class Cliff(nn.Module):
        def forward(self, x):
            highest = x.amax((1, 2, 3))
            return torch.stack([torch.where(highest > 0.55, torch.nan, highest + n) for n in range(4)], dim=1)

    images = torch.full((1, 1, 6, 6), 0.5)
    with pytest.raises(
        NonFiniteError, match="images 300 to 300, apgd-ce: a logit is NaN or infinite during AutoAttack"
    ):
        evaluate_autoattack(Cliff().eval(), as_block(images, torch.tensor([3])), AutoAttackSettings(epsilon="0.1"))


def test_both_precisions_agree():
    network, block = problem()
    double = replace(block, images=block.images.double())
    chosen = AutoAttackSettings(epsilon="0.3")
    single_records = evaluate_autoattack(network, block, chosen)
    double_records = evaluate_autoattack(network.double(), double, chosen)
    network.float()
    assert [record.broken_by for record in double_records] == [record.broken_by for record in single_records]


def test_images_in_another_memory_layout_get_the_same_records(monkeypatch):
    """Decoded colour images may lie channels last in memory, where upstream's views of the gradient fail."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
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
