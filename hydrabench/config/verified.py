"""Settings of the bounds: `ibp` and its tighter relatives."""

from __future__ import annotations

from typing import Literal

from hydrabench.config.fields import Radius, Section


class VerifiedSettings(Section):
    """A sound lower bound of every margin over the L∞ ball."""

    kind: Literal["ibp", "crown-ibp"]
    norm: Literal["linf"] = "linf"
    epsilon: Radius

    @property
    def protocol(self) -> str:
        """The protocol id names the bound."""
        return f"{self.kind}@1"
