from __future__ import annotations

import copy
import logging
import sys
import warnings

import pytest
import torch
from torch import nn

from hydrabench.bounds import BOUNDS, Search, lirpa, lirpa_alpha_margins, lirpa_margins
from hydrabench.bounds.lirpa import modules
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_images
from hydrabench.data.images import pixels
from hydrabench.errors import ConfigError, HydrabenchError, UnsupportedLayerError
from hydrabench.masking import attach_masks


def network_for_both(seed):
    """What auto_LiRPA 0.3 knows too: strides, paddings, groups, batch norm in front of a ReLU, pixel normalisation."""
    from hydrabench.models.normalize import normalized

    rng = torch.Generator().manual_seed(seed)
    layers = [
        *(nn.Conv2d(2, 4, 3, stride=1 + seed % 2, padding=seed % 3, bias=seed % 4 != 0), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 6, 2, stride=2, padding=1, groups=1 + seed % 2), nn.ReLU(), nn.Flatten()),
    ]
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 7, 6)).shape[1]
    layers += [nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, 4)]
    network = normalized(nn.Sequential(*layers), [0.4, 0.6], [0.2, 0.3]).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=rng) / max(1, tensor[0].numel()) ** 0.5)
        network[1][1].running_var.uniform_(0.2, 2.0, generator=rng)
    x = torch.rand(3, 2, 7, 6, generator=rng)
    return network, x, torch.randint(4, (3,), generator=rng), rng


def one_by_one(network, x, y, epsilon, method):
    """One image at a time: in a batch, crown of auto_LiRPA 0.3 relaxes a neuron if any image leaves it undecided."""
    images = zip(x.split(1), y.split(1), strict=True)
    return torch.cat([lirpa_margins(network, *image, epsilon, method=method) for image in images])


@pytest.mark.parametrize("name", lirpa.METHODS)
@pytest.mark.parametrize("seed", range(6))
def test_our_bounds_equal_those_of_auto_lirpa(auto_lirpa, name, seed):
    network, x, y, _ = network_for_both(seed)
    for epsilon in (0.0, 0.01, 0.3):  # 0.3 leaves the pixel range
        theirs = one_by_one(network, x, y, epsilon, name)
        torch.testing.assert_close(BOUNDS[name](network, x, y, epsilon), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_our_crown_is_never_below_that_of_auto_lirpa_for_a_batch(auto_lirpa, seed):
    network, x, y, _ = network_for_both(seed)
    for epsilon in (0.05, 0.3):
        theirs = lirpa_margins(network, x, y, epsilon, method="crown")
        assert (BOUNDS["crown"](network, x, y, epsilon) >= theirs - 1e-4).all()


@pytest.mark.parametrize("name", lirpa.METHODS)
@pytest.mark.parametrize("ref", ["digits-crown-ibp", "digits-trades-95", "digits-crown-ibp-lwm-99"])
def test_our_bounds_of_trained_networks_equal_those_of_auto_lirpa(auto_lirpa, name, ref):
    network, images = open_ref(ref).baked().eval().requires_grad_(False), load_images("digits", "test")
    x, y = pixels(images.images[:5]), images.labels[:5]
    for epsilon in (8 / 255, 16 / 255):
        theirs = one_by_one(network, x, y, epsilon, name)
        torch.testing.assert_close(BOUNDS[name](network, x, y, epsilon), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2])  # with groups, and without
def test_crown_of_auto_lirpa_lies_between_crown_ibp_and_what_sampled_points_reach(auto_lirpa, smallest_margin, seed):
    """On these networks; that full CROWN beats CROWN-IBP is an example and no law."""
    network, x, y, rng = network_for_both(seed)
    crown = lirpa_margins(network, x, y, 0.05, method="crown")
    assert (crown > BOUNDS["crown-ibp"](network, x, y, 0.05) + 1e-3).all()
    assert (crown <= smallest_margin(network, x, y, 0.05, rng) + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", lirpa.METHODS)
@pytest.mark.parametrize("pooling", ["avg", "max", "global"])
def test_residual_and_pooling_networks_are_bounded_soundly(
    auto_lirpa, residual_network, smallest_margin, pooling, method, dtype
):
    network, x, y, rng = residual_network(pooling)
    network, x = network.to(dtype), x.to(dtype)
    exact = lirpa_margins(network, x, y, 0.0, method=method)
    torch.testing.assert_close(exact, smallest_margin(network, x, y, 0.0, rng, points=1), rtol=1e-4, atol=1e-5)
    assert exact.dtype == dtype
    for epsilon in (0.01, 0.1):
        lower = lirpa_margins(network, x, y, epsilon, method=method)
        assert (lower < exact).all()
        assert (lower <= smallest_margin(network, x, y, epsilon, rng) + 1e-5).all()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("method", lirpa.METHODS)
def test_a_bound_of_auto_lirpa_ignores_the_rest_of_its_batch(auto_lirpa, residual_network, method):
    """A black and a grey image leave other neurons unstable than a noisy one does."""
    network, x, y, _ = residual_network("max")
    x = torch.cat([x, torch.zeros_like(x[:1]), torch.full_like(x[:1], 0.5)])
    y = torch.cat([y, y[:2]])
    together = lirpa_margins(network, x, y, 0.1, method=method)
    alone = [lirpa_margins(network, x[[row]], y[[row]], 0.1, method=method) for row in range(len(y))]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


class Flat(nn.Module):
    """What many networks of others do in place of `nn.Flatten`: a trace has the size of the batch in it."""

    def forward(self, x):
        return x.view(x.size(0), -1)


def small_with(layer, side, flatten=None, seed=0):
    """The layer between two convolutions, and images of 7 by `side` pixels."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), layer(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    x = torch.rand(2, 4, 7, side)
    features = nn.Sequential(*layers, nn.Flatten())(x).shape[1]
    head = [flatten or nn.Flatten(), nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, 4)]
    return nn.Sequential(*layers, *head).eval().requires_grad_(False), x, torch.randint(4, (2,))


CONVOLUTIONS = {
    "dilated": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "padded in one direction": lambda: nn.Conv2d(4, 4, 3, padding=(0, 1)),
    "strided in one direction": lambda: nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1),
    "with an even kernel": lambda: nn.Conv2d(4, 4, 2, stride=2, padding=1),
    "of rows": lambda: nn.Conv2d(4, 4, (1, 3)),
}


@pytest.mark.parametrize("method", lirpa.METHODS)
@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_images_that_are_not_square_are_bounded_like_ours(auto_lirpa, name, side, method):
    """By patches, CROWN of release 0.3 is too high for the first and the third of these, and fails for most others."""
    network, x, y = small_with(CONVOLUTIONS[name], side)
    theirs = lirpa_margins(network, x, y, 0.03, method=method)
    torch.testing.assert_close(BOUNDS[method](network, x, y, 0.03), theirs, rtol=1e-4, atol=1e-4)


def test_patches_are_used_where_they_are_right(auto_lirpa):
    """Some ten times faster: that they never were would go unnoticed otherwise."""
    square = nn.Conv2d(4, 4, 3, padding=1)
    modes = [lirpa.bounded_module(*small_with(lambda: square, side)[:2]).conv_mode for side in (7, 6)]
    modes += [lirpa.bounded_module(*small_with(layer, 7)[:2]).conv_mode for layer in CONVOLUTIONS.values()]
    assert modes == ["patches", "matrix", "matrix", "matrix", "matrix", "matrix", "patches", "matrix"]


@pytest.mark.parametrize("pool", [(3, 1, 1), (3, 2, 0), (2, 2, 1)], ids=str)
def test_average_pooling_that_release_0_3_passes_wrongly_is_refused(auto_lirpa, pool):
    if auto_lirpa.__version__ != "0.3":
        pytest.skip("newer releases have another rule")
    """Its bounds of windows that overlap or are padded are wrong in either direction; its intervals are right."""
    network, x, y = small_with(lambda: nn.AvgPool2d(*pool), 7)
    theirs = lirpa_margins(network, x, y, 0.03, method="ibp")
    torch.testing.assert_close(BOUNDS["ibp"](network, x, y, 0.03), theirs, rtol=1e-4, atol=1e-4)
    for method in ("crown-ibp", "crown"):
        with pytest.raises(UnsupportedLayerError, match="has a wrong rule for a part of this network"):
            lirpa_margins(network, x, y, 0.03, method=method)


def test_a_rule_that_is_wrong_for_a_single_point_is_found(auto_lirpa, monkeypatch):
    """Weights of linear layers that go backward 0.1% too large."""
    from auto_LiRPA.operators import BoundLinear

    right = BoundLinear.bound_backward

    def wrong(self, *args, **options):
        [(lower, upper), *others], *biases = right(self, *args, **options)
        return [(lower * 1.001 if lower is not None else None, upper), *others], *biases

    network, x, y = small_with(nn.Identity, 7)
    lirpa_margins(network, x, y, 0.03, method="crown-ibp")
    monkeypatch.setattr(BoundLinear, "bound_backward", wrong)
    with pytest.raises(UnsupportedLayerError, match=r"wrong rule .* its bounds of a single point are not its value"):
        lirpa_margins(network, x, y, 0.03, method="crown-ibp")
    lirpa_margins(network, x, y, 0.03, method="ibp")


def test_the_rules_of_a_large_network_are_checked_with_its_margins_alone(auto_lirpa, monkeypatch):
    """All neurons of cifar_model_large take 1.4 GB for one image, those of a ResNet minutes."""
    network, x, *_ = network_for_both(0)
    asked = []

    def spy(bounded, ball, rows, method):
        asked.append(method)
        return lower_bounds(bounded, ball, rows, method)

    lower_bounds = lirpa.lower_bounds
    monkeypatch.setattr(modules, "lower_bounds", spy)
    lirpa.bounded_module(network, x)
    monkeypatch.setattr(modules, "CHECKED", 1000)
    lirpa.bounded_module(network, x)
    assert asked == ["CROWN", "CROWN-IBP"]


@pytest.mark.parametrize("method", lirpa.METHODS)
def test_the_size_of_a_batch_that_a_trace_holds_fast_does_no_harm(auto_lirpa, method):
    network, x, y = small_with(nn.Identity, 7, Flat())
    same, _, _ = small_with(nn.Identity, 7)
    theirs = lirpa_margins(network, x, y, 0.03, method=method)
    torch.testing.assert_close(BOUNDS[method](same, x, y, 0.03), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", lirpa.METHODS)
def test_dropout_is_nothing_when_bounding(auto_lirpa, method):
    """Batch norm beside it: auto_LiRPA would trace both as in training."""
    network, x, y = small_with(lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)), 7)
    without = copy.deepcopy(network)
    without[2] = without[2][0]
    theirs = lirpa_margins(network, x, y, 0.03, method=method)
    torch.testing.assert_close(BOUNDS[method](without, x, y, 0.03), theirs, rtol=1e-4, atol=1e-4)


def test_too_little_memory_is_no_layer_without_a_rule(auto_lirpa):
    class Short:
        def compute_bounds(self, **_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 27 GB")

    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        lirpa.lower_bounds(Short(), x, torch.eye(2).unsqueeze(0), "CROWN")


def test_what_auto_lirpa_cannot_pass_is_refused(auto_lirpa, capfd):
    x, y = torch.rand(1, 1, 6, 6), torch.tensor([0])
    overlapping = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 3)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"cannot bound this network by CROWN \(.*stride.*own engine"):
        lirpa_margins(overlapping, x, y, 0.01, method="crown")
    unknown = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Hardswish()).eval()
    with pytest.raises(UnsupportedLayerError, match=r"auto_LiRPA knows no rule for a part of this network"):
        lirpa_margins(unknown, x, y, 0.01, method="ibp")
    assert capfd.readouterr() == ("", "")  # it would log each operation that it does not know


@pytest.mark.parametrize("layer", [lambda: nn.Conv2d(4, 4, 3, dilation=(1, 2)), lambda: nn.MaxPool2d(2, (2, 1))])
def test_a_rule_of_auto_lirpa_that_makes_tensors_of_the_wrong_shape_is_a_refusal(auto_lirpa, layer):
    network, x, y = small_with(layer, 7)
    with pytest.raises(UnsupportedLayerError, match=r"cannot bound this network by CROWN \(\w.*\); choose a method"):
        lirpa_margins(network, x, y, 0.03, method="crown")


@pytest.mark.parametrize("error", [TypeError, IndexError, KeyError, AttributeError, ValueError, RuntimeError])
def test_a_bug_outside_of_auto_lirpas_rules_is_no_layer_without_a_rule(auto_lirpa, error):
    """None of its rules raised it: a bug of ours, or a release that nobody has tried."""

    class Broken:
        def compute_bounds(self, **_):
            raise error("a bug")

    with pytest.raises(error, match="a bug"):
        lirpa.lower_bounds(Broken(), torch.rand(1, 1, 2, 2), torch.eye(2).unsqueeze(0), "CROWN")


def test_a_wrong_argument_is_no_layer_without_a_rule(auto_lirpa):
    network, x, _ = small_with(nn.Identity, 7)
    bounded = lirpa.bounded_module(network, x)
    with pytest.raises(TypeError, match="upside_down"):
        lirpa.lower_bounds(bounded, lirpa.perturbed(x, 0.1), torch.eye(4).expand(2, -1, -1), "CROWN", upside_down=True)


@pytest.mark.parametrize("method", lirpa.METHODS)
def test_no_images_have_no_bounds(auto_lirpa, method):
    network, x, y = small_with(nn.Identity, 7)
    assert lirpa_margins(network, x[:0], y[:0], 0.03, method=method).shape == (0,)
    assert lirpa_alpha_margins(network, x[:0], y[:0], 0.03, search=Search()).shape == (0,)


def test_another_image_that_takes_another_branch_is_refused(auto_lirpa):
    """CROWN bounds one image after the other by the trace of the first."""

    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * (1 if x.mean() < 0.5 else 2)

    x = torch.stack([torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 0.8)])
    with pytest.raises(UnsupportedLayerError, match="auto_LiRPA reads another function from this network"):
        lirpa_margins(Branching().eval(), x, torch.tensor([0, 1]), 0.01, method="crown")


def test_a_network_that_auto_lirpa_reads_wrongly_is_refused(auto_lirpa):
    """What a trace calls a constant: here another number at every call."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1)[:, :3] * self.calls

    with pytest.raises(UnsupportedLayerError, match="auto_LiRPA reads another function from this network"):
        lirpa_margins(Counting().eval(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), 0.01, method="ibp")


def test_auto_lirpa_sees_the_masked_weights_and_changes_nothing(auto_lirpa):
    network, x, y, _ = network_for_both(2)
    attach_masks(network, 0.3)
    before = copy.deepcopy(network.state_dict())
    theirs = lirpa_margins(network, x, y, 0.01, method="ibp")
    torch.testing.assert_close(theirs, BOUNDS["ibp"](network, x, y, 0.01), rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not theirs.requires_grad


def test_auto_lirpa_says_nothing(auto_lirpa, residual_network, capfd):
    network, x, y, _ = residual_network("avg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lirpa_margins(network, x, y, 0.01, method="crown")
    assert capfd.readouterr() == ("", "")


def test_nothing_stays_patched(auto_lirpa, residual_network):
    """Before, between and after calls torch, numpy and auto_LiRPA are as their makers have them."""
    from auto_LiRPA.operators import BoundAveragePool, BoundMaxPool

    owners = [torch, torch._C.Node, torch.onnx.symbolic_helper, torch.nn.Module, BoundAveragePool, BoundMaxPool]
    owners += [auto_lirpa.BoundedModule, sys.modules["numpy.lib"]]
    before = [dict(vars(owner)) for owner in owners]
    network, x, y, _ = residual_network("max")
    lirpa_margins(network, x, y, 0.01, method="crown")
    lirpa_alpha_margins(network, x, y, 0.01, search=Search(iterations=2))
    assert [dict(vars(owner)) for owner in owners] == before


def test_importing_auto_lirpa_leaves_logging_warnings_and_numpy_alone(auto_lirpa):
    lirpa.auto_lirpa.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "auto_LiRPA"]:
        del sys.modules[name]
    before = logging.getLogger().handlers[:], warnings.filters[:], "numpy.lib.arraysetops" in sys.modules
    lirpa.auto_lirpa()
    assert (logging.getLogger().handlers, warnings.filters, "numpy.lib.arraysetops" in sys.modules) == before


def test_margin_rows_leave_the_true_class_out():
    """Label 1 of 3: e_1 - e_0 and e_1 - e_2."""
    assert lirpa.margin_rows(torch.tensor([1]), 3, torch.float32).tolist() == [[[-1, 1, 0], [0, 1, -1]]]


def test_without_auto_lirpa_the_error_says_how_to_get_it(monkeypatch):
    network, x, y, _ = network_for_both(0)
    lirpa.auto_lirpa.cache_clear()
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(
        HydrabenchError, match=r"pip install 'hydrabench\[lirpa\]'`.*`pip install --no-deps auto_LiRPA`"
    ):
        lirpa_margins(network, x, y, 0.01, method="ibp")


def test_bad_requests_are_refused():
    network, x, y, _ = network_for_both(0)
    with pytest.raises(ConfigError, match="unknown auto_LiRPA method 'crwon'; did you mean 'crown'"):
        lirpa_margins(network, x, y, 0.01, method="crwon")
    with pytest.raises(ValueError, match="eval mode"):
        lirpa_margins(network.train(), x, y, 0.01, method="ibp")
