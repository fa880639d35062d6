"""Initial weights that keep the widths of boxes: their sizes by hand, what they do to deep networks, and what stays."""

from __future__ import annotations

from math import log10, pi, sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.bounds import keep_widths, program_of, read
from hydrabench.bounds.box import Interval
from hydrabench.bounds.interval import propagate
from hydrabench.errors import UnsupportedLayerError
from hydrabench.masking import prunable_layers
from hydrabench.models import build_model
from hydrabench.runtime import stream
from hydrabench.threat import linf_box

EPSILON = 2 / 255
ARCHITECTURES = ("cifar_model", "cifar_model_bn", "vgg2_bn", "wrn_10_1", "wrn_28_1", "resnet18")


def images(count: int = 8, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=stream("images"))


def fresh(arch: str) -> nn.Module:
    return build_model(arch, (3, 16, 16), 10, generator=stream("weights")).train()


def filled(arch: str, seed: int = 0) -> nn.Module:
    network = fresh(arch)
    keep_widths(network, images(), stream(seed))
    return network


def widths(network: nn.Module) -> list[float]:
    """Mean widths of the boxes before every ReLU and of the logits, batch norm at the statistics of the batch."""
    with torch.no_grad():
        box = Interval.between(*linf_box(images(), EPSILON))
        passed = propagate(read(program_of(network), images()), box, keep=True)
    return [box.width.mean().item() for box in (*passed.before.values(), passed.output)]


class Residual(nn.Module):
    """x -> a(x) + relu(a(x)), then b: a takes one box, b the sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x.flatten(1))
        return self.b(first + F.relu(first))


def test_the_weights_of_two_layers_worked_by_hand():
    """Deviation sqrt(2 pi) / 3 for the layer with 3 inputs, sqrt(2 pi) / 5 / 2 for that with 5 that are sums of two."""
    network = Residual()
    keep_widths(network, torch.rand(4, 1, 1, 3), stream("any"))
    drawn = stream("any")
    expected = torch.randn(5, 3, generator=drawn) * 2.5066283 / 3
    torch.testing.assert_close(network.a.weight.data, expected)
    expected = torch.randn(2, 5, generator=drawn) * 2.5066283 / 10
    torch.testing.assert_close(network.b.weight.data, expected)
    assert not network.a.bias.any()
    assert not network.b.bias.any()


def test_an_average_neuron_passes_the_width_of_its_inputs_on():
    """|w| has the mean sqrt(2 / pi) · sqrt(2 pi) / n = 2 / n: a row of n adds up to 2, which the ReLU halves."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(300, 4000))
    keep_widths(network, torch.rand(1, 3, 10, 10), stream(1))
    assert network[1].weight.abs().sum(1).mean().item() == pytest.approx(2, rel=0.01)


def test_the_deviation_of_every_layer_of_a_deep_residual_network():
    """Behind the k-th unit of a stage of a wide ResNet, k + 1 widths are added up; a first unit projects them all."""
    summed = {"conv1": 1, "fc": 5}
    for block, entering in (("block1", 1), ("block2", 5), ("block3", 5)):
        for unit in range(4):
            summed[f"{block}.layer.{unit}.conv1"] = unit + 1 if unit else entering
            summed[f"{block}.layer.{unit}.conv2"] = 1
        if block != "block1":
            summed[f"{block}.layer.0.convShortcut"] = entering
    layers = prunable_layers(filled("wrn_28_1"))
    assert set(layers) == set(summed)
    for name, layer in layers.items():
        count, inputs = layer.weight.numel(), layer.weight[0].numel()
        relative = layer.weight.std().item() * inputs * summed[name] / sqrt(2 * pi)
        assert relative == pytest.approx(1, abs=5 / sqrt(2 * count)), name  # five standard errors
        assert abs(layer.weight.mean().item()) < 5 * layer.weight.std().item() / sqrt(count), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_boxes_keep_their_widths_through_all_layers(arch):
    """The first layer doubles them, having no ReLU in front, and up to five are added up: 10, of which borders, max
    pooling and the cut to [0, 1] take something, and a few ReLUs that are active more often than not add some."""
    found = [width / (2 * EPSILON) for width in widths(filled(arch))]
    assert min(found) > 0.1
    assert max(found) < 15


def test_from_the_usual_weights_boxes_grow_by_orders_of_magnitude():
    """wrn_28_1 has 26 layers in a row."""
    usual = widths(fresh("wrn_28_1"))
    assert log10(usual[-1] / usual[0]) > 15
    assert all(later > earlier for earlier, later in zip(usual, usual[2:], strict=False))


def test_batch_norm_starts_as_the_identity_and_its_running_statistics_stay():
    network, seen = filled("wrn_10_1"), []
    norms = [module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        assert not module.running_mean.any()
        assert (module.running_var == 1).all()
        assert module.num_batches_tracked == 0
        module.register_forward_hook(lambda _module, taken, given: seen.append((taken[0], given)))
    with torch.no_grad():
        network(images())
    assert len(seen) == len(norms) - 2  # the group that nothing uses has two
    for taken, given in seen:
        torch.testing.assert_close(given, taken, rtol=1e-4, atol=1e-4 * float(taken.abs().max()))


def test_a_seed_gives_the_same_weights_and_leaves_other_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second, other = (filled("wrn_10_1", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_the_images_decide_batch_norm_only():
    network, brighter = fresh("cifar_model_bn"), fresh("cifar_model_bn")
    keep_widths(network, images(), stream(0))
    keep_widths(brighter, images() / 2, stream(0))
    for name, layer in prunable_layers(network).items():
        assert torch.equal(layer.weight, brighter.get_submodule(name).weight)
    assert not torch.equal(network[1].weight, brighter[1].weight)


def test_what_no_forward_pass_uses_stays_zero():
    assert not any(tensor.any() for tensor in filled("wrn_28_1").sub_block1.layer[0].conv1.parameters())


def test_batch_norm_without_parameters_is_passed_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4 * 196, 2))
    keep_widths(network, images(), stream(0))
    inputs = network[3].weight[0].numel()
    assert network[3].weight.std().item() * inputs == pytest.approx(sqrt(2 * pi), rel=0.1)


def test_a_layer_that_bounds_do_not_know_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Mish(), nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=r"cannot bound 2 \(Mish\)"):
        keep_widths(network, torch.rand(1, 3, 2, 2), stream(0))
