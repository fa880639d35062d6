"""Weights read for figures: the same from every layout of one network."""

from __future__ import annotations

import numpy as np
import pytest

from hydrabench.checkpoints import export_checkpoint, open_ref
from hydrabench.reporting.weights import layers_of


@pytest.mark.parametrize("layout", ["compact", "masked"])
def test_every_layout_of_a_network_has_the_same_weights(tmp_path, layout):
    for one in ("dense", layout):
        export_checkpoint(open_ref("digits-trades-95"), tmp_path / one, one)
    found, dense = layers_of(tmp_path / layout), layers_of(tmp_path / "dense")
    assert list(found) == list(dense)
    assert all(np.array_equal(values, dense[name]) for name, values in found.items())


def test_a_damaged_compact_file_has_none(tmp_path):
    export_checkpoint(open_ref("digits-trades-95"), tmp_path / "compact", "compact")
    data = bytearray((tmp_path / "compact").read_bytes())
    data[-40] ^= 1
    (tmp_path / "compact").write_bytes(bytes(data))
    assert layers_of(tmp_path / "compact") == {}
