"""The normalisation of a foreign network: from text, from a layer in the file, through every format."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from hydrabench.checkpoints import (
    import_checkpoint,
    open_ref,
    parse_normalization,
)
from hydrabench.cli import main
from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.models import inner_network
from tests.helpers.foreign_files import (
    BARE,
    CIFAR,
    HALF,
    prefixed,
    small_network,
)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.49,0.48,0.44/0.2,0.19,0.2", (0.49, 0.48, 0.44), (0.2, 0.19, 0.2)),
        ("0.5/0.25", (0.5,), (0.25,)),
    ],
)
def test_normalisations_are_read_from_text(text, mean, std):
    found = parse_normalization(text)
    assert (found.mean, found.std) == (mean, std)
    assert parse_normalization("none") == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar", r"'cifar': give one of none, cifar10, .* or MEAN/STD such as"),
        ("0.5", r"give one of none"),
        ("1/2/3", r"give one of none"),
        ("125.3,123,113.9/63,62.1,66.7", r"grey levels, .* give 0\.4914,0\.4824,0\.4467/0\.2471,0\.2435,0\.2616"),
        ("nan,0,0/1,1,1", r"needs one finite mean"),
        ("0.5/inf", r"needs one finite mean"),
        ("0.5,0.5/0.2", r"needs one finite mean"),
        ("0.5/0", r"needs one finite mean"),
    ],
)
def test_normalisations_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_normalization(text)


def test_a_normalisation_layer_in_the_file_is_that_of_the_network(tmp_path):
    network = small_network()
    for prefixes in (("0.", "1."), ("normalize.", "model."), ("module.normalizer.", "module.model.")):
        layer = {f"{prefixes[0]}mean": torch.full((1, 3, 1, 1), 0.5), f"{prefixes[0]}std": torch.full((3,), 0.25)}
        torch.save({**layer, **prefixed(network.state_dict(), prefixes[1])}, tmp_path / "x.pt")
        found = import_checkpoint(tmp_path / "x.pt", arch="cifar_model", **CIFAR)
        assert found.header.normalization == parse_normalization("0.5,0.5,0.5/0.25,0.25,0.25")
        x = torch.rand(2, 3, 32, 32)
        assert torch.allclose(found.network(x), network((x - 0.5) / 0.25))
    with pytest.raises(CheckpointError, match=r"holds a normalisation with mean \(0\.5, .*leave the option out"):
        import_checkpoint(tmp_path / "x.pt", **BARE)


def test_grey_levels_in_a_file_are_refused_with_the_values_in_pixel_units(tmp_path):
    state = prefixed(small_network().state_dict(), "1.")
    torch.save({"0.mean": torch.tensor([125.3, 123.0, 113.9]), "0.std": torch.full((3,), 63.0), **state},
               tmp_path / "x.pt")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"is in grey levels, .* mean \[0\.4914, 0\.4824, 0\.4467\]"):
        import_checkpoint(tmp_path / "x.pt", **BARE)


@pytest.mark.parametrize("layout", ["state-dict", "hydra", "dense", "masked", "compact"])
def test_a_normalisation_survives_every_format(tmp_path, layout):
    torch.save(small_network().state_dict(), tmp_path / "x.pt")
    given = ["--arch", "cifar_model", "--dataset", "svhn", "--normalization", "half"]
    result = CliRunner().invoke(
        main, ["zoo", "export", str(tmp_path / "x.pt"), "--format", layout, "--out", str(tmp_path / "y"), *given]
    )
    assert result.exit_code == 0, result.output
    again = open_ref(str(tmp_path / "y"))
    assert (again.header.normalization, again.header.dataset) == (HALF, "svhn")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(again.network(x), small_network().eval()((x - 0.5) / 0.5), atol=1e-6)
    assert inner_network(again.network) is not again.network
