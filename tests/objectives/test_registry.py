"""What every objective must do: train what its phase trains, split with the batch, learn, select."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.data import load_images, pixels
from hydrabench.masking import attach_masks, prunable_layers, score_masks, set_phase, shared_masks
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.cat_rs import CatRsSettings
from hydrabench.objectives.cc_ibp import CcIbpSettings
from hydrabench.objectives.consistency import ConsistencySettings
from hydrabench.objectives.crown_ibp import CrownIbpSettings
from hydrabench.objectives.exp_ibp import ExpIbpSettings
from hydrabench.objectives.free import FreeSettings
from hydrabench.objectives.ibp import IbpSettings
from hydrabench.objectives.macer import MacerSettings
from hydrabench.objectives.mixtrain import MixtrainSettings
from hydrabench.objectives.mtl_ibp import MtlIbpSettings
from hydrabench.objectives.natural import NaturalSettings
from hydrabench.objectives.pgd import PgdTrainingSettings
from hydrabench.objectives.sabr import SabrSettings
from hydrabench.objectives.smoothadv import SmoothAdvSettings
from hydrabench.objectives.smoothmix import SmoothMixSettings
from hydrabench.objectives.stability import StabilitySettings
from hydrabench.objectives.trades import TradesSettings
from hydrabench.runtime import stream

SETTINGS = {
    "natural": NaturalSettings(name="natural"),
    "trades": TradesSettings(name="trades", epsilon="8/255", steps=3),
    "pgd": PgdTrainingSettings(name="pgd", epsilon="8/255", steps=3),
    "free": FreeSettings(name="free", epsilon="8/255"),
    "stability": StabilitySettings(name="stability", sigma=0.25),
    "smoothadv": SmoothAdvSettings(name="smoothadv", epsilon="0.5", sigma=0.25, steps=2),
    "consistency": ConsistencySettings(name="consistency", sigma=0.25),
    "macer": MacerSettings(name="macer", sigma=0.25, copies=4),
    "smoothmix": SmoothMixSettings(name="smoothmix", sigma=0.25, steps=2),
    "cat-rs": CatRsSettings(name="cat-rs", epsilon="0.5", sigma=0.25, steps=2, copies=2),
    "ibp": IbpSettings(name="ibp", epsilon="8/255"),
    "crown-ibp": CrownIbpSettings(name="crown-ibp", epsilon="8/255"),
    "mixtrain": MixtrainSettings(name="mixtrain", epsilon="8/255", samples=2),
    "sabr": SabrSettings(name="sabr", epsilon="8/255", box=0.4, steps=3, regularization=0),
    "mtl-ibp": MtlIbpSettings(name="mtl-ibp", epsilon="8/255", ibp_weight=0.3, steps=3, regularization=0),
    "cc-ibp": CcIbpSettings(name="cc-ibp", epsilon="8/255", ibp_weight=0.3, steps=3, regularization=0),
    "exp-ibp": ExpIbpSettings(name="exp-ibp", epsilon="8/255", ibp_weight=0.3, steps=3, regularization=0),
}
OTHERS = {
    "trades in L2": TradesSettings(name="trades", norm="l2", epsilon="0.5", steps=3),
    "pgd in L2": PgdTrainingSettings(name="pgd", norm="l2", epsilon="0.5", steps=3),
    "gaussian": StabilitySettings(name="stability", sigma=0.25, variant="gaussian"),
    "crown-ibp with kappa": CrownIbpSettings(name="crown-ibp", epsilon="8/255", kappa_start=0.8, kappa_end=0.2),
}
ALL = SETTINGS | OTHERS
UNDISTURBED = {
    "mixtrain": MixtrainSettings(name="mixtrain", epsilon="8/255", samples=2, probability=0),
    "stability": StabilitySettings(name="stability", sigma=1e-9),
    "smoothadv": SmoothAdvSettings(name="smoothadv", epsilon="0.5", sigma=1e-9),
    "consistency": ConsistencySettings(name="consistency", sigma=1e-9, entropy=0),
    "macer": MacerSettings(name="macer", sigma=1e-9),
    "smoothmix": SmoothMixSettings(name="smoothmix", sigma=1e-9, weight=0),
    "cat-rs": CatRsSettings(name="cat-rs", epsilon="0.5", sigma=1e-9, weight=0, copies=1),
}
SMOOTHED = {
    "stability",
    "smoothadv",
    "consistency",
    "macer",
    "smoothmix",
    "cat-rs",
}  # chosen by the averaged prediction

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
every_setting = pytest.mark.parametrize("settings", ALL.values(), ids=ALL)


def problem(arch="cifar_model_bn"):
    network = build_model(arch, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)


def step(epsilon=8 / 255, ramp=1.0, **keys) -> TrainingStep:
    return TrainingStep(epsilon, ramp, stream("test"), **keys)


def loss(network, x, y, settings, given):
    return OBJECTIVES[settings.name].loss(network, x, y, settings, given)


def test_every_objective_is_tested_under_the_name_that_its_settings_take():
    assert set(OBJECTIVES) == set(SETTINGS)
    for name, objective in OBJECTIVES.items():
        assert get_args(objective.settings.model_fields["name"].annotation) == (name,)
        assert isinstance(SETTINGS[name], objective.settings)


@every_setting
@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_the_gradient_is_finite_and_reaches_just_what_the_phase_trains(settings, phase):
    network, x, y = problem()
    attach_masks(network, 0.3)
    set_phase(network, phase)
    network.train()
    with shared_masks(network):
        losses = loss(network, x, y, settings, step(ramp=0.5))
        untouched = all(parameter.grad is None for parameter in network.parameters())
        losses.total.backward()
    assert untouched, "an attack left gradients on the parameters"
    assert torch.isfinite(losses.total)
    assert losses.logits.shape == (6, 10)
    for name, parameter in network.named_parameters():
        trained = parameter.requires_grad and not name.endswith("7.bias")  # a bias that batch norm takes off again
        assert trained is False or torch.isfinite(parameter.grad).all(), name
        assert parameter.requires_grad or parameter.grad is None, name
    if phase == "prune":
        assert all(found.scores.grad.any() for found in score_masks(network).values())
    else:
        layers = prunable_layers(network).values()
        assert all(layer.parametrizations.weight.original.grad.any() for layer in layers)


@every_setting
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(settings):
    """Weighed by their images, over several steps, so that samples fall into either part or both."""
    network, x, y = problem("cifar_model")
    network, x = network.double().train(), x.double()
    memories = {}, {}
    for number in range(4):
        gradients = []
        for memory, parts in zip(memories, ([None], [slice(0, 2), slice(2, 6)]), strict=True):
            network.zero_grad()
            for rows in parts:
                chosen = slice(None) if rows is None else rows
                given = TrainingStep(8 / 255, 0.5, stream("part", number), rows, 6 if rows else None, memory)
                losses = loss(network, x[chosen], y[chosen], settings, given)
                (losses.total * len(y[chosen]) / 6).backward()
                if losses.after:
                    losses.after()
            gradients.append([parameter.grad.clone() for parameter in network.parameters()])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    assert memories[0].keys() == memories[1].keys()
    assert all(torch.equal(memories[0][key], memories[1][key]) for key in memories[0])


@every_objective
def test_at_radius_zero_and_undisturbed_the_loss_is_the_natural_one(objective):
    network, x, y = problem("cifar_model")
    settings = (SETTINGS | UNDISTURBED)[objective]
    losses = loss(network, x, y, settings, step(0.0, 0.0))
    assert losses.total.item() == pytest.approx(functional.cross_entropy(network(x), y).item(), abs=1e-6)
    torch.testing.assert_close(losses.logits, network(x))


@every_setting
def test_a_few_steps_lower_the_loss_on_digits(settings):
    """The same images and random numbers each time, so that only the network changes."""
    images = load_images("digits", "train", None, download=False)
    x, y = pixels(images.images[:64]), images.labels[:64]
    network = problem("cifar_model")[0].train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    totals = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = loss(network, x, y, settings, step(2 / 255, 0.5))
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.97 * totals[0]


TWICE = ("trades", "stability", "smoothmix", "cat-rs", "mtl-ibp", "cc-ibp", "exp-ibp")
PASSES = dict.fromkeys(OBJECTIVES, 1) | dict.fromkeys(TWICE, 2)


@every_objective
def test_batch_norm_counts_these_train_mode_passes_per_step(objective):
    """TRADES shares one clean pass between both terms: 2 where the original counts 4 (oracle O10, pitfall P7)."""
    network, x, y = problem()
    network.train()
    loss(network, x, y, SETTINGS[objective], step())
    assert network.training
    assert network[1].num_batches_tracked == PASSES[objective]


@every_objective
def test_only_free_training_repeats_a_minibatch(objective):
    assert OBJECTIVES[objective].repeats(SETTINGS[objective]) == (4 if objective == "free" else 1)


@every_objective
def test_verdicts_at_radius_zero_and_undisturbed_are_clean_correctness(objective):
    network, x, y = problem()
    network.eval()
    y = network(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    settings = (SETTINGS | UNDISTURBED)[objective]
    verdicts = OBJECTIVES[objective].verdicts(network, x, y, settings, step(0.0))
    assert verdicts.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"natural"} - SMOOTHED))
def test_a_verdict_at_the_full_radius_is_stricter_than_a_clean_one(objective):
    """Logits ±(20 · first pixel - 10): right at 0.52 when clean, wrong after any step down of 0.02."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[20.0], [-20.0]]))
        network[1].bias.copy_(torch.tensor([-10.0, 10.0]))
    x, y = torch.tensor([0.52, 0.6]).view(2, 1, 1, 1), torch.tensor([0, 0])
    verdicts = OBJECTIVES[objective].verdicts(network, x, y, SETTINGS[objective], step(8 / 255))
    assert verdicts.tolist() == [False, True]
    assert OBJECTIVES["natural"].verdicts(network, x, y, SETTINGS["natural"], step()).tolist() == [True, True]
