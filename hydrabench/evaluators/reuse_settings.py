"""Settings of certificates that are derived from those of a parent network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from hydrabench.config.protocol import unless
from hydrabench.evaluators.smoothing_settings import DEFAULT_RADII, SmoothingSettings, radii_text


class ReuseSettings(SmoothingSettings):
    """Incremental smoothing, see `smoothing.reuse`; a recipe cannot contain it, because it needs a parent's run.

    sigma, n0, samples (N), seed, rigor and version are those of the parent's run of mode cohen; alpha and radii are the
    child's. reuse_samples: the most draws that both networks vote on.
    """

    mode: Literal["reused"] = "reused"  # type: ignore[assignment]  # a mode of its own, which the others do not offer
    parent_mode: Literal["cohen"] = "cohen"
    reuse_samples: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def withdrawn(cls, values: Any) -> Any:
        """Refuse ledgers of what release 0.1 could do besides; they say `direct: false` where it is not that."""
        known = dict(values) if isinstance(values, dict) else {}
        if known.pop("direct", False) or known.get("parent_mode", "cohen") != "cohen":
            raise ValueError("reuse is for parents of mode cohen now, without --reuse-direct; certify anew")
        return known

    def conflicts(self) -> Iterator[str]:
        """Yield what does not go together."""
        if not self.radii:
            yield "reuse stops when the radii are settled; give at least one"
        if self.reuse_samples > self.samples:
            yield (
                f"reuse_samples {self.reuse_samples} exceeds the parent's {self.samples} draws, where nothing is left "
                "to save; give fewer"
            )

    @property
    def protocol(self) -> str:
        """`smoothing-reuse@2` is a parent of `smoothing-cohen@2` and up to a tenth of its draws; others are spelt out.

        m: the most shared draws; a: the child's alpha; the other letters as in `SmoothingSettings.protocol`.
        """
        spelt = "-discrete" if self.rigor == "discrete" else ""
        spelt += unless(100, "n0_", self.n0) + unless(100_000, "n", self.samples)
        spelt += unless(default_reuse_samples(self.samples), "m", self.reuse_samples) + unless(0.001, "a", self.alpha)
        spelt += f"-r{radii_text(self.radii)}" if self.radii != DEFAULT_RADII else ""
        return f"smoothing-reuse{spelt}{unless(0, 's', self.seed)}@{self.version}"


def default_reuse_samples(samples: int) -> int:
    """A tenth of the parent's draws, at least 1."""
    return max(1, samples // 10)
