"""What all sections share: exact radii and noise, and numbers that end."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hydrabench.config import parse
from hydrabench.errors import ConfigError
from hydrabench.evaluators.pgd import PgdSettings
from hydrabench.evaluators.smoothing_settings import SmoothingSettings
from hydrabench.objectives.stability import StabilitySettings
from hydrabench.recipes import TrainRecipe


def test_radii_and_noise_are_read_exactly():
    assert PgdSettings(epsilon=8 / 255).epsilon == Fraction(8, 255)
    assert PgdSettings(epsilon=8 / 255).plain() == PgdSettings(epsilon="8/255").plain()
    assert PgdSettings(epsilon="1e-3").epsilon == Fraction(1, 1000)
    assert SmoothingSettings(sigma="1/4", radii=("1/4", 0.5)) == SmoothingSettings(sigma=0.25, radii=(0.25, 0.5))
    assert StabilitySettings(name="stability", sigma="64/255").sigma == 64 / 255


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (TrainRecipe, {"epochs": 1, "lr": float("inf")}, r"lr: input should be a finite number"),
        (TrainRecipe, {"epochs": 1, "lr": 1e300}, r"lr: is at most 1,000,000,000, got 1e\+300"),
        (TrainRecipe, {"epochs": 10**24, "lr": 1}, r"epochs: is at most 1,000,000,000, got 10{24}"),
        (TrainRecipe, {"epochs": "9" * 5000, "lr": 1}, r"epochs: .*\(got '9{39}…9{39}'\)"),
        (SmoothingSettings, {"kind": "smoothing", "samples": 10**24}, r"samples: is at most 1,000,000,000"),
        (SmoothingSettings, {"kind": "smoothing", "seed": 2**64}, r"seed: is at most 9,223,372,036,854,775,807, got"),
        (SmoothingSettings, {"kind": "smoothing", "sigma": 64}, r"sigma: '64' lies outside .* write 64/255"),
        (SmoothingSettings, {"kind": "smoothing", "sigma": "1/0"}, r"sigma: .*valid number.*'1/0'"),
        (PgdSettings, {"kind": "pgd", "norm": "l2", "epsilon": 64}, r"epsilon: '64' .* write 64/255"),
    ],
    ids=range(9),
)
def test_a_number_that_would_never_end_is_refused(model, values, message):
    with pytest.raises(ConfigError, match=message):
        parse(model, values, "x.yml")
