"""Both engines on every digits checkpoint that comes with hydrabench, dense and pruned."""

from __future__ import annotations

import pytest
import torch

from hydrabench.bounds import BOUNDS, Search, alpha_crown_margins, lirpa_alpha_margins, lirpa_margins
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_block, load_images
from hydrabench.files import shipped
from hydrabench.masking import attach_masks, score_masks

pytestmark = pytest.mark.usefixtures("auto_lirpa")
NAMES = sorted(path.name for path in shipped("zoo").iterdir() if path.name.startswith("digits-"))


@pytest.fixture(scope="module")
def block():
    return load_block(load_images("digits", "test"), 0, tuple(range(6)))


def both(block, network, epsilon, method):
    theirs = lirpa_margins(network, block.images, block.labels, epsilon, method=method)
    with torch.no_grad():
        return theirs, BOUNDS[method](network, block.images, block.labels, epsilon)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
@pytest.mark.parametrize("name", NAMES)
def test_both_engines_give_the_same_margins(block, name, method):
    """Within 1e-4 of the largest of them, at the training radius and at one that proves little."""
    network = open_ref(name).baked().eval()
    for epsilon in (16 / 255, 0.15):
        theirs, ours = both(block, network, epsilon, method)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_masked_networks_are_those_of_their_baked_selves(block, method):
    """Ours reads the masks, auto_LiRPA gets them baked; half of what is left goes."""
    network = open_ref("digits-trades-95").baked().eval()
    attach_masks(network, 0.025)
    theirs, ours = both(block, network, 16 / 255, method)
    assert score_masks(network)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_our_alpha_crown_proves_no_less_and_is_no_looser_at_equal_iterations(block, name):
    network, search = open_ref(name).baked().eval(), Search(iterations=15)
    theirs, ours = (
        bound(network, block.images, block.labels, 0.08, search=search)
        for bound in (lirpa_alpha_margins, alpha_crown_margins)
    )
    assert ((ours > 0) >= (theirs > 0)).all()
    assert (ours >= theirs - 1e-3).all()
    assert ours.mean() >= theirs.mean() - 1e-5


@pytest.mark.parametrize("name", ["digits-crown-ibp-99", "digits-trades-95"])
def test_so_it_is_with_the_slopes_of_neurons(block, name):
    network, search = open_ref(name).baked().eval(), Search("all", iterations=10)
    theirs, ours = (
        bound(network, block.images, block.labels, 0.1, search=search)
        for bound in (lirpa_alpha_margins, alpha_crown_margins)
    )
    assert ((ours > 0) >= (theirs > 0)).all()
    assert ours.mean() >= theirs.mean() - 1e-4
