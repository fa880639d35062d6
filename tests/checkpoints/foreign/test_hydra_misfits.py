"""Files of the original HYDRA code that do not fit: another density, another network, no data set."""

from __future__ import annotations

import pytest
import torch

from hydrabench.errors import ConfigError
from hydrabench.models import inner_network
from tests.helpers.originals import (
    dense_state,
    imported,
    masked_state,
    refused,
    same,
    tensors,
    write,
)


def test_a_density_that_does_not_fit_the_zeros_is_refused_with_the_one_that_does(tmp_path):
    path = write(tmp_path / "d.pth.tar", dense_state("vgg2_bn", 0.1), "vgg2_bn")
    refused(path, r"0.05 does not fit the zeros .* features\.0 has 173 .* instead of 87; .* fit 0\.1", density=0.05)
    assert imported(path).header.density == 0.1
    refused(path, r"0.2 does not fit the zeros .* 17224 that are not zero; its zeros fit 0\.1", density=0.2)
    with pytest.raises(ConfigError, match="density 10 is outside"):
        imported(path, density=10)


def test_a_kept_weight_may_be_zero(tmp_path):
    """classifier.2 keeps 6554 of 65536 at 0.1; one zero more is what no density explains in all layers."""
    state = dense_state("vgg2_bn", 0.1)
    weight = state["classifier.2.weight"]
    weight[tuple(weight.nonzero()[0])] = 0
    path = write(tmp_path / "d.pth.tar", state, "vgg2_bn")
    found = imported(path)
    assert same(tensors(found), state)
    assert (found.header.density, found.header.kept["classifier.2"]) == (0.1, 6553)
    assert imported(path, density=0.1).header.kept is None


def test_a_state_dict_of_another_network_is_refused_by_name(tmp_path):
    state = masked_state("vgg2_bn")
    path = write(tmp_path / "m.pth.tar", state, "vgg2_bn")
    refused(path, r"missing conv1\.weight; .*and \d+ more", arch="resnet18", density=0.1)
    refused(path, r"unknown architecture 'vgg2_bm'; did you mean 'vgg2_bn'", arch="vgg2_bm", density=0.1)
    del state["features.1.running_var"]
    state["extra.weight"] = torch.ones(3)
    state["classifier.0.bias"] = torch.ones(3)
    write(path, state, "vgg2_bn")
    message = r"missing features\.1\.running_var; unexpected extra\.weight; classifier\.0\.bias has shape \(3,\)"
    refused(path, message, density=0.1)
    del state["classifier.4.popup_scores"], state["extra.weight"]
    refused(write(path, state, "vgg2_bn"), r"missing classifier\.4\.scores", density=0.1)


def test_the_data_set_is_asked_for_where_the_file_does_not_tell_it(tmp_path):
    path = write(tmp_path / "d.pth.tar", dense_state("cifar_model", 1.0), "cifar_model")
    refused(path, "3 channels and has 10 classes, .* give --dataset, one of cifar10, svhn$", dataset=None)
    assert imported(path, dataset="svhn").header.dataset == "svhn"
    refused(path, "takes 3 channels and has 10 classes; cifar100 has 3 channels and 100 classes", dataset="cifar100")
    with pytest.raises(ConfigError, match="unknown data set 'cfar10'; did you mean 'cifar10'"):
        imported(path, dataset="cfar10")
    path = write(tmp_path / "mnist.pth.tar", dense_state("mnist_model", 1.0), "mnist_model")
    refused(
        path,
        r"takes 1 channels and has 10 .* give --dataset, one of digits, fashionmnist, mnist$",
        dataset=None,
    )
    assert imported(path, dataset="mnist").header.shape == (1, 28, 28)
    refused(path, r"5\.weight has shape \(100, 1568\), expected", dataset="digits")


def test_networks_for_imagenet_get_the_normalisation_that_they_were_trained_with(tmp_path):
    state = dense_state("ResNet18", 0.05)
    checkpoint = imported(write(tmp_path / "d.pth.tar", state, "ResNet18", prefix="module."), dataset=None)
    assert (checkpoint.header.dataset, checkpoint.header.density) == ("imagenet", 0.05)
    assert same(tensors(checkpoint), state)
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(checkpoint.network(x), inner_network(checkpoint.network)(normalized))
