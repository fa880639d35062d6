"""The steps that benchmarks/train_step.py compares: they compute the same, in the passes that they are said to take."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parametrize

from hydrabench.masking import mask, prunable_layers, score_masks, top_k_mask
from hydrabench.models import build_model
from hydrabench.runtime import stream

FILE = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
SPECIFICATION = importlib.util.spec_from_file_location("train_step", FILE)
train_step = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(train_step)


def problem():
    """Images whose start of the attack stays in [0, 1]: the original does not clamp it, we do."""
    x = 0.2 + 0.6 * torch.rand(6, 1, 8, 8, generator=stream("x"), dtype=torch.float64)
    return x, torch.arange(6) % 10


def contender(step, phase, arch="cifar_model"):
    """A network in double precision, masked if `phase` says so, its optimizer, and the step as a call."""
    network = build_model(arch, (1, 8, 8), 10, generator=stream("weights")).double().train()
    attach = {train_step.plain_step: train_step.attach_plain_masks, train_step.our_step: train_step.attach_our_masks}
    if phase == "prune":
        attach[step](network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-4)
    return network, trained, lambda: step(network, *problem(), optimizer, stream("noise"))


@pytest.mark.parametrize("phase", train_step.PHASES)
def test_plain_and_ours_agree_on_losses_gradients_and_updates_without_batch_norm(phase):
    """With it they differ: the original's forward pass for the log moves the statistics that its attack uses."""
    _, plain, plain_step = contender(train_step.plain_step, phase)
    _, ours, our_step = contender(train_step.our_step, phase)
    assert len(plain) == len(ours) > 0
    for _ in range(3):
        before = [parameter.detach().clone() for parameter in ours]
        found, expected = our_step(), plain_step()
        assert found[0] == pytest.approx(expected[0], rel=1e-9)
        assert found[1] == expected[1]
        for mine, theirs, old in zip(ours, plain, before, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-12)
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
            assert not torch.equal(mine, old)


def test_plain_and_ours_prune_the_same_weights():
    plain, _, plain_step = contender(train_step.plain_step, "prune")
    ours, _, our_step = contender(train_step.our_step, "prune")
    first = {name: layer.weight.detach() for name, layer in prunable_layers(ours).items()}
    for _ in range(3):
        plain_step()
        our_step()
    for name, layer in prunable_layers(ours).items():
        assert torch.equal(layer.weight, prunable_layers(plain)[name].weight)
    assert any(not torch.equal(layer.weight, first[name]) for name, layer in prunable_layers(ours).items())


@pytest.mark.parametrize(
    ("step", "passes"),
    [
        ("plain_step", {"train": 4, "eval": 20}),
        ("our_step", {"train": 2, "eval": 11}),
        ("floor_step", {"train": 2, "eval": 11}),
    ],
)
def test_each_step_takes_these_forward_passes(step, passes):
    """Plain: 1 for the log, 3 for the loss, 10 · 2 in the attack. Ours and the floor: 2, and 1 + 10 in the attack."""
    taken = Counter()
    network = build_model("cifar_model_bn", (1, 8, 8), 10, generator=stream("weights")).double().train()
    network.register_forward_pre_hook(lambda module, _: taken.update(["train" if module.training else "eval"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    rest = () if step == "floor_step" else (optimizer, stream("noise"))
    getattr(train_step, step)(network, *problem(), *rest)
    assert taken == passes
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_masks_are_made_in_every_pass_of_plain_and_once_in_ours(monkeypatch):
    made = Counter()
    plain, _, plain_step = contender(train_step.plain_step, "prune")
    ours, _, our_step = contender(train_step.our_step, "prune")
    sort, select = torch.Tensor.argsort, mask.top_k_mask
    monkeypatch.setattr(torch.Tensor, "argsort", lambda *given: made.update(["sorts"]) or sort(*given))
    monkeypatch.setattr(mask, "top_k_mask", lambda *given: made.update(["selections"]) or select(*given))
    plain_step()
    our_step()
    layers = len(prunable_layers(ours))
    assert made == {"sorts": 24 * layers, "selections": layers}
    assert all(parametrize.is_parametrized(layer, "weight") for layer in prunable_layers(plain).values())
    assert len(score_masks(ours)) == layers


def test_the_sorted_mask_is_ours_and_its_gradient_passes_straight_through():
    """Oracle O1 at k = 0.1: of ten scores, the first nine places of the sort are zeros; the 0.6 is kept."""
    scores = torch.tensor([0.3, -0.1, 0.0, -0.5, 0.2, 0.05, 0.4, -0.25, 0.15, 0.6], requires_grad=True)
    found = train_step.SortedMask.apply(scores.abs())
    assert torch.equal(found, top_k_mask(scores.detach(), 1))
    found.backward(torch.arange(10.0))
    assert scores.grad.tolist() == [0, -1, 0, -3, 4, 5, 6, -7, 8, 9]
