from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds import interval_bounds, program_of, read
from hydrabench.bounds.program.convert import LAYERS
from hydrabench.errors import UnsupportedLayerError


class Calls(nn.Module):
    """Any forward, given as a function of the module and its input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, scale=None):
        return self.function(self, x)


class DoubledConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoublyWeightedConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class DoubledWhenCalled(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class ListDoubledWhenCalled(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


def conv(**options):
    return nn.Conv2d(2, 4, 3, **options)


def run(network, x):
    values = [x]
    for node in read(program_of(network)):
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    return values[-1]


@pytest.mark.parametrize("seed", range(4))
def test_a_traced_network_has_the_program_of_the_walked_one(tiny_problem, seed):
    network, x, _, _ = tiny_problem(seed)
    traced = Calls(lambda self, x: self.layers(x), layers=network)
    assert [step.source for step in program_of(traced).steps] == [step.source for step in program_of(network).steps]
    torch.testing.assert_close(run(traced, x), network(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: torch.flatten(F.relu(self.conv(x)), 1),
        lambda self, x: torch.flatten(F.relu(self.conv(x), inplace=True), start_dim=1),
        lambda self, x: torch.relu(self.conv(x)).flatten(1),
        lambda self, x: self.conv(x).relu().flatten(1, -1),
        lambda self, x: self.conv(x).relu().flatten(start_dim=1),
        lambda self, x: torch.flatten(input=F.relu(input=self.conv(x)), start_dim=1),
    ],
)
def test_functions_and_methods_are_read_like_layers(forward):
    network, x = Calls(forward, conv=conv()), torch.rand(2, 2, 4, 4)
    kinds = [type(node.operation).__name__ for node in read(program_of(network))]
    assert kinds == ["Convolution", "Relu", "Flatten"]
    torch.testing.assert_close(run(network, x), network(x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x + x,
        lambda self, x: torch.add(x, x.relu()),
        lambda self, x: x.relu().add(x),
        lambda self, x: F.max_pool2d(x, 2),
        lambda self, x: F.max_pool2d(x, (3, 2), stride=1, padding=(1, 0), dilation=1),
        lambda self, x: torch.max_pool2d(x, 2, 1),
        lambda self, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda self, x: F.avg_pool2d(x, kernel_size=(2, 3)),
        lambda self, x: F.adaptive_avg_pool2d(x, (None, 3)),
        lambda self, x: F.adaptive_avg_pool2d(x, 1),
        lambda self, x: F.dropout(x, 0.5, training=self.training).relu(),
        lambda self, x: x.mean((2, 3)),
        lambda self, x: torch.mean(x, dim=[2, 3], keepdim=True),
        lambda self, x: x.view(x.size(0), -1),
        lambda self, x: x.relu().view(x.size()[0], -1),
        lambda self, x: x.reshape((x.shape[0], -1)),
        lambda self, x: torch.reshape(x, (x.shape[0], -1)),
    ],
)
def test_pooling_sums_and_reshapes_are_read_as_torch_computes_them(forward):
    network, x = Calls(forward).eval(), torch.randn(2, 2, 5, 4)
    torch.testing.assert_close(run(network, x), network(x))


# Operations in place ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.relu(self.conv(x), inplace=True).relu(),
        lambda self, x: self.conv(x).relu_().flatten(1),
        lambda self, x: torch.relu_(self.conv(x)),
        lambda self, x: self.relu(self.conv(x)) + x,
        lambda self, x: self.conv(x).add_(x),
        lambda self, x: self.conv(self.relu(self.conv(x))).flatten(1).relu_(),
    ],
)
def test_an_operation_in_place_on_a_value_that_nothing_else_reads_is_like_any_other(forward):
    network, x = Calls(forward, conv=nn.Conv2d(2, 2, 3, padding=1), relu=nn.ReLU(inplace=True)), torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(run(network, x), network(x.clone()))


def added(self, x):
    out = self.conv(x)
    out += x
    return self.relu(out) + self.conv(out) if self.later else self.relu(out)


def test_a_residual_sum_in_place_is_read_as_torchvision_means_it():
    layers = {"conv": nn.Conv2d(2, 2, 3, padding=1), "relu": nn.ReLU(inplace=True)}
    x = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(run(Calls(added, **layers, later=False), x), Calls(added, **layers, later=False)(x))
    with pytest.raises(UnsupportedLayerError, match=r"reads iadd in conv after an operation in place"):
        program_of(Calls(added, **layers, later=True))


def shortcut_is_rectified_too(self, x):
    identity = x = self.conv(x)
    return self.relu(x) + identity


def view_is_rectified_too(self, x):
    x = self.conv(x)
    flat = x.flatten(1)
    return x.relu_().flatten(1) + flat


def original_is_rectified_with_its_view(self, x):
    x = self.conv(x)
    return x.view(x.size(0), -1).relu_() + x.flatten(1)


def identity_hands_on_the_same_tensor(self, x):
    x = self.conv(x)
    same = self.identity(x)
    return self.relu(x) + same


def dropout_hands_on_the_same_tensor(self, x):
    x = self.conv(x)
    same = F.dropout(x, training=False)
    return same.relu_() + x


def a_result_that_was_overwritten_later(self, x):
    first = self.conv(x).relu_()
    second = first.add_(x)
    return first + second


def shortcut_is_added_to_as_well(self, x):
    identity = x = self.conv(x)
    x += x.relu()
    return x + identity


def unread_but_overwritten(self, x):
    x = self.conv(x)
    self.relu(x)
    return x


@pytest.mark.parametrize(
    "forward",
    [
        shortcut_is_rectified_too,
        view_is_rectified_too,
        original_is_rectified_with_its_view,
        identity_hands_on_the_same_tensor,
        dropout_hands_on_the_same_tensor,
        a_result_that_was_overwritten_later,
        shortcut_is_added_to_as_well,
        unread_but_overwritten,
    ],
)
def test_a_value_that_is_read_after_a_change_in_place_is_refused(forward):
    """In each of these torch reads the changed value; a program without it would bound another network."""
    layers = {"conv": nn.Conv2d(2, 2, 3, padding=1), "relu": nn.ReLU(inplace=True), "identity": nn.Identity()}
    with pytest.raises(UnsupportedLayerError, match=r"after an operation in place may have changed it"):
        program_of(Calls(forward, **layers).eval())


def test_the_same_networks_are_read_where_nothing_happens_in_place():
    layers = {"conv": nn.Conv2d(2, 2, 3, padding=1), "relu": nn.ReLU(), "identity": nn.Identity()}
    x = torch.randn(2, 2, 4, 4)
    for forward in (shortcut_is_rectified_too, identity_hands_on_the_same_tensor):
        network = Calls(forward, **layers)
        torch.testing.assert_close(run(network, x), network(x))


# Refusals --------------------------------------------------------------------------------------


def adds_to_its_images(self, x):
    """The caller's images are others afterwards, and bounds that are computed next would be about these."""
    x += self.conv(x)
    return x.flatten(1)


def adds_to_a_view_of_its_images(self, x):
    return x.flatten(1).add_(self.conv(x).flatten(1))


def moves_its_statistics(self, x):
    """Reading the network calls it once, and every call after that is another network."""
    with torch.no_grad():
        self.norm.running_mean.add_(1)
    return self.norm(x).flatten(1)


def replaces_its_statistics(self, x):
    self.norm.running_mean = self.norm.running_mean + 1
    return self.norm(x).flatten(1)


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_container_does_when_it_is_called_is_read(nested):
    doubled = ListDoubledWhenCalled(nn.Linear(4, 2))
    network, x = nn.Sequential(doubled) if nested else doubled, torch.rand(3, 4)
    torch.testing.assert_close(run(network, x), network(x))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(2, 2), nn.Mish())), r"1\.1 \(Mish\)"),
        (nn.Sequential(conv(), nn.MaxPool2d(2, return_indices=True)), r"1 \(MaxPool2d\).* return_indices"),
        (nn.AvgPool2d(2, divisor_override=3), r"the network \(AvgPool2d\): it pools with divisor_override"),
        (nn.LPPool2d(2, 2), r"the network \(LPPool2d\): it has no sound rule"),
        (Calls(lambda self, x: self.head(x), head=nn.Sequential(nn.Softmax(1))), r"head\.0 \(Softmax\)"),
        (Calls(lambda self, x: 1 / x), r"truediv \(function truediv\): it divides by a value"),
        (Calls(lambda self, x: x + x.size(0)), r"add \(function add\): it computes with size"),
        (Calls(lambda self, x: torch.add(x, x, alpha=2)), r"add \(function add\): it is called with alpha"),
        (Calls(lambda self, x: x.view(2, 32)), r"view \(method view\): it reshapes to another first axis than"),
        (Calls(lambda self, x: x.reshape(x.size(1), -1)), r"reshapes to another first axis than"),
        (Calls(lambda self, x: x.view(-1, x.shape[0], 16)), r"by the size of the batch"),
        (Calls(lambda self, x: x.view(-1, 16)), r"mixes the images of a batch.*smoothing"),
        (Calls(lambda self, x: x.transpose(0, 1)), r"moves the batch axis.*smoothing"),
        (Calls(lambda self, x: x[0]), r"getitem \(function getitem\): it picks images of a batch"),
        (Calls(lambda self, x: x.chunk(2)[0]), r"chunk \(method chunk\): it takes a value apart along axis 0"),
        (Calls(lambda self, x: F.pad(x, (1, 1), "reflect")), r"pads with mode='reflect'"),
        (Calls(lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear")), r"upsamples with mode='bilinear'"),
        (
            Calls(lambda self, x: x + self.c, c=nn.Parameter(torch.ones(2, 2, 4, 4))),
            r"batch axis of its own",
        ),
        (
            Calls(lambda self, x: F.avg_pool2d(x, x.size(2))),
            r"avg_pool2d .* kernel_size=size, which is computed from a value or its shape",
        ),
        (
            Calls(lambda self, x: F.adaptive_avg_pool2d(x, x.size(2))),
            r"output_size=.*, which is computed from a value or its shape",
        ),
        (Calls(lambda self, x: F.dropout(x)), r"dropout \(function dropout\): it is random"),
        (Calls(lambda self, x: x.mean((0, 1))), r"mixes the images of a batch; .*smoothing"),
        (Calls(lambda self, x: F.relu(x.size(0))), r"gives relu something that is not a value"),
        (Calls(lambda self, x: x.flatten(1, -1, 3)), r"is called with more arguments"),
        (Calls(lambda self, x: torch.cat([x, x])), r"cat \(function cat\): it joins values along axis 0"),
        (Calls(lambda self, x: torch.erf(x)), r"erf \(function erf\)"),
        (Calls(lambda self, x: x.cos()), r"cos \(method cos\)"),
        (
            Calls(lambda self, x: F.linear(x, self.weight), weight=nn.Parameter(torch.ones(1))),
            r"linear \(function linear",
        ),
        (Calls(lambda self, x: torch.flatten(x)), r"flattens axes 0 to -1"),
        (
            Calls(lambda self, x: x if x.sum() > 0 else -x),
            r"the network \(Calls\): it does something that depends on the values",
        ),
        (Calls(lambda self, x: (x, x)), r"gives its output something that is not a value of the network"),
        (Calls(lambda self, x: (x.relu(), x.flatten(1))[1]), r"unused: nothing reads the result of relu"),
        (Calls(lambda self, x: (x.flatten(1), x.relu())[0]), r"unused: nothing reads the result of relu"),
        (Calls(lambda self, x: (x, x.relu())[0]), r"unused: nothing reads the result of relu"),
        (nn.Sequential(nn.Flatten(0)), r"flattens axes 0 to -1"),
        (nn.Sequential(conv(padding=1, padding_mode="reflect")), r"padding_mode='reflect'"),
        (nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), r"even kernel"),
        (nn.Sequential(nn.Dropout(0.5)), r"0 \(Dropout\).*call eval\(\)"),
        (nn.Sequential(DoubledConv(1, 1, 1)), r"0 \(DoubledConv\).*Conv2d with a forward of its own"),
        (
            nn.Sequential(DoublyWeightedConv(1, 1, 1)),
            r"0 \(DoublyWeightedConv\).*a Conv2d with a conv_forward of its own",
        ),
        (nn.Sequential(DoubledWhenCalled(4, 2)), r"0 \(DoubledWhenCalled\).*a Linear with a call of its own"),
        (Calls(adds_to_its_images, conv=nn.Conv2d(2, 2, 1)), r"writes over its own images in iadd"),
        (Calls(adds_to_a_view_of_its_images, conv=nn.Conv2d(2, 2, 1)), r"writes over its own images in add"),
        (Calls(moves_its_statistics, norm=nn.BatchNorm2d(2)).eval(), r"changes its parameters or buffers when"),
        (Calls(replaces_its_statistics, norm=nn.BatchNorm2d(2)).eval(), r"changes its parameters or buffers when"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)).eval(), r"depend on the rest of its batch"),
    ],
)
def test_what_has_no_sound_rule_is_refused_by_name(network, words):
    with pytest.raises(UnsupportedLayerError, match=words) as refusal:
        interval_bounds(network, torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
    assert "batch" in words or all(kind.__name__ in str(refusal.value) for kind in LAYERS)


def test_a_sum_of_different_shapes_is_refused_because_it_might_mix_the_images_of_a_batch():
    network = Calls(lambda self, x: self.conv(x) + x, conv=nn.Conv2d(2, 1, 1))
    with pytest.raises(UnsupportedLayerError, match=r"shapes \(1, 4, 4\) and \(2, 4, 4\)"):
        interval_bounds(network, torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))


def test_hooks_and_replaced_forwards_are_refused_because_they_may_change_the_result():
    hooked = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\).*hooks"):
        program_of(hooked)
    patched = nn.Sequential(nn.Linear(2, 2))
    patched[0].forward = lambda x: x
    with pytest.raises(UnsupportedLayerError, match="forward of its own"):
        program_of(patched)


def test_hooks_of_all_modules_are_refused_too():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 2)
    try:
        with pytest.raises(UnsupportedLayerError, match="hooks"):
            program_of(nn.Sequential(nn.Linear(2, 2)))
    finally:
        handle.remove()
    program_of(nn.Sequential(nn.Linear(2, 2)))
