"""Blocks: large ones stay as they are, images that take minutes come one by one, and the user is told beforehand."""

from __future__ import annotations

import pytest
from torch import nn

from hydrabench.evaluators import EVALUATORS, AlphaCrownSettings, CleanSettings, SmoothingSettings, VerifiedSettings
from hydrabench.evaluators.blocks import BLOCK_OPERATIONS, REACHED, Blocks, duration
from hydrabench.models import build_model

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
SPEED = 1e11  # of a core
SECOND = REACHED * SPEED  # operations


def blocks_for(settings, network, shape):
    return EVALUATORS[settings.kind].blocks(settings, network, shape)


def network(arch, shape=CIFAR):
    return build_model(arch, shape, 10).eval()


@pytest.mark.parametrize("kind", ["symbolic", "crown", "cascade"])
@pytest.mark.parametrize("arch", ["cifar_model", "cifar_model_bn", "mnist_model"])
def test_small_networks_keep_their_large_blocks(kind, arch):
    for shape in (CIFAR, DIGITS):
        found = blocks_for(VerifiedSettings(kind=kind, epsilon="2/255"), network(arch, shape), shape)
        assert found.size == 100
        assert found.warning(kind, 10_000, SPEED) is None


@pytest.mark.parametrize("kind", ["symbolic", "crown", "cascade"])
@pytest.mark.parametrize("arch", ["wrn_28_1", "wrn_28_4", "resnet18", "vgg16_bn"])
def test_deep_networks_have_blocks_of_one_image_and_a_warning(kind, arch):
    found = blocks_for(VerifiedSettings(kind=kind, epsilon="2/255"), network(arch), CIFAR)
    assert found.size == 1
    assert "--method ibp or crown-ibp" in found.warning(kind, 3, SPEED)


def test_a_block_is_a_fixed_amount_of_work_between_the_extremes():
    for arch in ("cifar_model_large", "vgg2"):
        found = blocks_for(VerifiedSettings(kind="crown", epsilon="2/255"), network(arch), CIFAR)
        assert 1 < found.size < 100
        assert found.size * found.operations <= BLOCK_OPERATIONS < (found.size + 1) * found.operations


def test_a_cascade_that_ends_with_a_search_has_smaller_blocks():
    settings = VerifiedSettings(kind="cascade", methods=("ibp", "crown", "alpha-crown"), epsilon="2/255")
    assert blocks_for(settings, network("cifar_model"), CIFAR).size == 10
    assert blocks_for(settings, network("wrn_28_1"), CIFAR).size == 1


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (CleanSettings(), 100),
        (VerifiedSettings(kind="ibp", epsilon="2/255"), 100),
        (VerifiedSettings(kind="crown-ibp", epsilon="2/255"), 100),
        (VerifiedSettings(kind="cascade", methods=("ibp", "crown-ibp"), epsilon="2/255"), 100),
        (VerifiedSettings(kind="crown", engine="auto_lirpa", epsilon="2/255"), 10),
        (SmoothingSettings(sigma=0.25), 1),
        (SmoothingSettings(sigma=0.25, mode="adaptive"), 32),
    ],
    ids=lambda value: str(getattr(value, "protocol", value)),
)
def test_what_bounds_no_neurons_one_by_one_keeps_its_blocks_whatever_the_network(settings, size):
    found = blocks_for(settings, network("wrn_28_1"), CIFAR)
    assert (found.size, found.operations, found.may_be_slow) == (size, 0.0, False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (89, "89 s"), (90, "1.5 min"), (5400, "1.5 h"), (86400, "24 h"), (2e5, "2.31 d")],
)
def test_durations_are_told_in_the_largest_unit_of_which_there_are_one_and_a_half(seconds, text):
    assert duration(seconds) == text


def test_the_warning_says_how_long_an_image_and_all_of_them_may_take():
    assert (
        Blocks(1, 300 * SECOND)
        .warning("crown", 10, SPEED)
        .startswith(
            "crown may take up to 5 min of processor time for an image of this network, 50 min for 10; cheaper: a"
        )
    )
    assert Blocks(10, 60 * SECOND).warning("crown", 10, SPEED) is None
    assert "10 min of processor time" in Blocks(1, 300 * SECOND).warning("crown", 10, SPEED / 2)


def test_a_search_is_announced_alone_and_at_the_end_of_a_cascade_with_what_may_make_it_longer():
    alone = AlphaCrownSettings(epsilon="2/255")
    cascaded = VerifiedSettings(kind="cascade", methods=("ibp", "crown", "alpha-crown"), epsilon="2/255")
    crown = blocks_for(VerifiedSettings(kind="crown", epsilon="2/255"), network("wrn_28_1"), CIFAR)
    first, last = (blocks_for(settings, network("wrn_28_1"), CIFAR) for settings in (alone, cascaded))
    assert (first.size, last.size) == (10, 1)
    assert first.operations == last.operations == crown.operations > 0
    assert first.search == last.search > crown.search == 0
    assert first.warning("alpha-crown", 1, SPEED).startswith("alpha-crown may take about ")
    assert "many times that with slopes all" in first.warning("x", 3, SPEED)
    assert crown.warning("crown", 3, SPEED).startswith("crown may take up to ")
    assert blocks_for(alone, network("cifar_model"), CIFAR).warning("alpha-crown", 10_000, SPEED) is None


def test_a_time_limit_shortens_what_is_announced_of_a_search_but_for_the_pass_before_it():
    found = [
        blocks_for(AlphaCrownSettings(epsilon="2/255", iterations=100_000, time_limit=limit), network("vgg2"), CIFAR)
        for limit in (None, 500.0, 0.1)
    ]
    assert found[0].seconds(SPEED) > 1000
    assert found[1].seconds(SPEED) == 500.0
    assert 0.1 < found[2].seconds(SPEED) < 100


def test_nothing_is_announced_of_auto_lirpa():
    strange = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Mish(), nn.Linear(64, 10)).eval()
    found = blocks_for(AlphaCrownSettings(epsilon="2/255", engine="auto_lirpa"), strange, DIGITS)
    assert (found.size, found.operations, found.search) == (10, 0.0, 0.0)


def test_the_warning_about_a_single_image_does_not_say_everything_twice():
    blocks = Blocks(1, 300 * SECOND, rest="less if few neurons are undecided", cheaper="--method ibp")
    assert blocks.warning("crown", 1, SPEED) == (
        "crown may take up to 5 min of processor time for an image of this network, and less if few neurons are "
        "undecided; cheaper: --method ibp"
    )
