"""What an import brings: numbers without records are checked when they are made."""

from __future__ import annotations

import pytest

from hydrabench.reporting import ExternalNumber


def test_a_published_number_knows_the_radius_that_it_is_about():
    assert ExternalNumber("certified_accuracy@0.5", 0.43, sigma=0.25).radius == 0.5
    assert ExternalNumber("clean_accuracy", 0.9).radius is None
    assert ExternalNumber("average_certified_radius", 1.3, sigma=1.0).value == 1.3


@pytest.mark.parametrize(
    ("metric", "value", "n", "message"),
    [
        ("clean_accuracy", 94.2, None, r"clean_accuracy is 94\.2, outside \[0, 1\]"),
        ("robust_accuracy", -0.1, None, "outside"),
        ("robust_accuracy", float("nan"), None, "outside"),
        ("average_certified_radius", -1.0, None, r"outside \[0, inf\]"),
        ("clean_accuracy", 0.9, 0, "is about 0 images"),
    ],
)
def test_what_no_number_can_be_is_refused(metric, value, n, message):
    with pytest.raises(ValueError, match=message):
        ExternalNumber(metric, value, n)
