"""What every bound shares that can search for radii (`--search-radius`): options, metrics, and what summaries say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.evaluators.description import Line, Metric, Option, clean_metric, verified_metrics
from hydrabench.evaluators.verified_settings import BoundSettings
from hydrabench.ledger import RadiusRecord

if TYPE_CHECKING:
    from torch import Tensor

    from hydrabench.data.images import Block
    from hydrabench.evaluators.radius_search import Bound

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SEARCH_BLOCK = 10  # images, whose trials at one radius are computed together
SEARCH_RADIUS = Option(
    "search_radius", "Find the largest verified and the smallest broken radius up to --epsilon.", "flag", "Radii"
)
STEP_OF_RADII = Option("tolerance", "Largest step between radii.", heading="Radii", default="1/64 of --epsilon")
OPTIONS = (SEARCH_RADIUS, STEP_OF_RADII)


def searched(
    network: Any, block: Block, settings: BoundSettings, bound: Bound
) -> tuple[Sequence[RadiusRecord], Tensor]:
    """See `radius_search.search_radii`."""
    from hydrabench.evaluators.radius_search import search_radii

    return search_radii(network, block, settings, bound)


def radii_metrics(lines: Sequence[Line], settings: Any) -> dict[str, Metric]:
    """Return clean, verified and unbroken accuracy at the largest radius, and the mean verified radius."""
    unbroken = tuple(line["broken_radius"] is None for line in lines)
    return {
        "clean_accuracy": clean_metric(lines),
        "verified_accuracy": verified_metrics(lines, settings)["verified_accuracy"],
        "robust_accuracy": Metric(unbroken, label="not broken"),
        "average_verified_radius": Metric(tuple(line["verified_radius"] for line in lines), "t", label="mean radius"),
    }


def more(settings: Any, _shape: tuple[int, int, int], lines: Sequence[Line]) -> dict[str, Any]:
    """Return the quantiles of both radii over images for `summary.json`, "0.5" the median; null: nothing breaks it.

    A quantile is the radius of an image: the smallest that at least that fraction of the images do not exceed.
    Misclassified images have radius 0.
    """

    def radii(name: str) -> dict[str, float | None]:
        ranked = sorted((line[name] for line in lines), key=lambda radius: (radius is None, radius))
        return {f"{share:g}": ranked[max(0, -int(-share * len(ranked) // 1) - 1)] for share in QUANTILES}

    return (
        {"radii": {name: radii(f"{name}_radius") for name in ("verified", "broken")}} if settings.search_radius else {}
    )


def trials_of(settings: BoundSettings) -> int:
    """Return how many radii are tried at most."""
    return settings.halvings + 1 if settings.search_radius else 1


def attack_passes(settings: BoundSettings) -> float:
    """Forward passes for an image of the attacks of a search."""
    return INPUT_GRADIENT * 100 * (1 + trials_of(settings))
