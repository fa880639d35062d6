"""Faster forward passes compute the same function up to rounding, and leave the given network alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.models import build_model
from hydrabench.smoothing.forward import Forward, folded


def network(arch="resnet18"):
    model = build_model(arch, (3, 32, 32), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


# Batch norms before and after: in all of these each stands directly behind a convolution.
NORMS = {"resnet18": [20, 0], "cifar_model_bn": [2, 0], "vgg11_bn": [8, 0]}
IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("arch", NORMS)
@torch.no_grad()
def test_folding_keeps_the_function_and_removes_the_batch_norms_behind_convolutions(arch):
    model = network(arch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = folded(model)
    exact, found = model(IMAGES), copy(IMAGES)
    assert torch.allclose(exact, found, rtol=1e-3, atol=1e-3 * exact.abs().max().item())
    assert torch.equal(exact.argmax(1), found.argmax(1))
    assert [norms(model), norms(copy)] == NORMS[arch]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_batch_norm_that_is_not_alone_behind_its_convolution_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            for norm in (self.norm, self.first):
                norm.running_mean.fill_(0.3)
                norm.running_var.fill_(2.0)

        def forward(self, x):
            features = self.conv(self.first(x))
            return (self.norm(features) + features).mean((2, 3))

    model = Shared().eval()
    copy = folded(model)
    assert torch.equal(model(IMAGES), copy(IMAGES))
    with pytest.raises(ValueError, match=r"eval mode only; call network\.eval\(\) first"):
        folded(Shared().train())


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [(Forward(channels_last=True), 1e-4), (Forward(precision="bfloat16"), 0.1), (Forward(fold_batch_norm=True), 1e-3)],
    ids=str,
)
@torch.no_grad()
def test_every_way_of_computing_gives_the_same_logits_up_to_its_rounding(how, tolerance):
    model = network()
    prepared = how.apply(model)
    exact, found = model(IMAGES), prepared(IMAGES).float()
    assert not any(module.training for module in prepared.modules())
    assert (exact - found).abs().max() < tolerance * exact.abs().max()
    if how.precision == "bfloat16":
        assert prepared(IMAGES).dtype == torch.bfloat16
        assert not torch.equal(exact, found)


def test_nothing_asked_for_is_the_network_itself():
    model = network("cifar_model")
    assert Forward().apply(model) is model
    assert Forward().describe() == {}
    assert Forward(compile=True, channels_last=True).describe() == {"compile": True, "channels_last": True}


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_gives_the_same_logits():
    model = network("cifar_model_bn")
    assert torch.allclose(Forward(compile=True).apply(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
