"""Settings of the bounds: `ibp` and its tighter relatives."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hydrabench.config.fields import Radius, Section
from hydrabench.threat import Norm

Method = Literal["ibp", "symbolic", "crown-ibp", "crown"]
CASCADE: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")


class VerifiedSettings(Section):
    """A sound lower bound of every margin over a ball; `cascade` tries `methods` until one proves it."""

    kind: Literal["ibp", "symbolic", "crown-ibp", "crown", "cascade"]
    norm: Norm = "linf"
    epsilon: Radius
    methods: tuple[Method, ...] = Field(CASCADE, min_length=1)
    added: ClassVar[tuple[str, ...]] = ("methods",)

    @model_validator(mode="after")
    def refuse_idle_methods(self) -> VerifiedSettings:
        """Only a cascade has methods, and trying one twice proves nothing more."""
        if self.kind != "cascade" and "methods" in self.model_fields_set and self.methods != CASCADE:
            raise ValueError(f"methods: belong to kind cascade, got {'+'.join(self.methods)} with kind {self.kind}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: names one twice, got {'+'.join(self.methods)}; name each once")
        return self

    @property
    def protocol(self) -> str:
        """The protocol id names the bound; `cascade@1` is ibp, crown-ibp, crown, whatever differs is spelt out."""
        methods = "" if self.methods == CASCADE else "-" + "+".join(self.methods)
        return f"{self.kind}{methods}@1"
