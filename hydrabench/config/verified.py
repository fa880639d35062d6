"""Settings of the bounds: `ibp` and its tighter relatives."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from hydrabench.config.fields import Radius, Section
from hydrabench.config.protocol import unless
from hydrabench.threat import Norm

Method = Literal["ibp", "symbolic", "crown-ibp", "crown"]
CASCADE: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
SOUND = ("ibp", "crown-ibp")  # what can be rounded outwards
AUTO_LIRPA = ("ibp", "crown-ibp", "crown")  # what it is asked for besides alpha-crown


class VerifiedSettings(Section):
    """A sound lower bound of every margin over a ball; `cascade` tries `methods` until one proves it.

    rigor: "standard" computes in the precision of the run, and again in float64 where rounding could turn a verdict;
    "sound" rounds outwards in float64 and claims what survives, see `bounds.sound`.
    """

    kind: Literal["ibp", "symbolic", "crown-ibp", "crown", "cascade"]
    norm: Norm = "linf"
    epsilon: Radius
    methods: tuple[Method, ...] = Field(CASCADE, min_length=1)
    engine: Literal["hydrabench", "auto_lirpa"] = "hydrabench"
    rigor: Literal["standard", "sound"] = "standard"
    added: ClassVar[tuple[str, ...]] = ("methods", "engine", "rigor")

    @model_validator(mode="after")
    def refuse_idle_methods(self) -> VerifiedSettings:
        """Only a cascade has methods, and trying one twice proves nothing more."""
        if self.kind != "cascade" and "methods" in self.model_fields_set and self.methods != CASCADE:
            raise ValueError(f"methods: belong to kind cascade, got {'+'.join(self.methods)} with kind {self.kind}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: names one twice, got {'+'.join(self.methods)}; name each once")
        return self

    @model_validator(mode="after")
    def refuse_what_auto_lirpa_is_not_asked(self) -> VerifiedSettings:
        """It gives a second opinion on some methods, in L∞."""
        if self.engine == "auto_lirpa" and (self.kind not in AUTO_LIRPA or self.norm != "linf"):
            raise ValueError(
                f"engine: auto_lirpa bounds linf balls by {', '.join(AUTO_LIRPA)}, got {self.norm} and {self.kind}; "
                "leave the engine at hydrabench"
            )
        return self

    @model_validator(mode="after")
    def refuse_rigor_without_rules(self) -> VerifiedSettings:
        """Not every method can be rounded outwards."""
        if self.rigor == "sound" and (self.kind not in SOUND or self.norm != "linf" or self.engine != "hydrabench"):
            raise ValueError(
                f"rigor: sound bounds linf balls by {', '.join(SOUND)} of engine hydrabench, got {self.norm}, "
                f"{self.kind} and {self.engine}; choose one of these, or leave the rigor at standard"
            )
        return self

    @property
    def protocol(self) -> str:
        """The protocol id names the bound; `cascade@1` is ibp, crown-ibp, crown, whatever differs is spelt out."""
        methods = "" if self.methods == CASCADE else "-" + "+".join(self.methods)
        engine = "" if self.engine == "hydrabench" else f"-{self.engine}"
        return f"{self.kind}{methods}{engine}{'-sound' if self.rigor == 'sound' else ''}@1"


class AlphaCrownSettings(Section):
    """CROWN with optimised slopes, by auto_LiRPA; `bounds.Search` says what the options mean."""

    model_config = ConfigDict(allow_inf_nan=False)
    kind: Literal["alpha-crown"] = "alpha-crown"
    norm: Literal["linf"] = "linf"
    epsilon: Radius
    slopes: Literal["output", "all"] = "output"
    iterations: PositiveInt = 100
    learning_rate: PositiveFloat = 0.1
    time_limit: PositiveFloat | None = None  # seconds for each image; with it, a run cannot be reproduced

    @property
    def protocol(self) -> str:
        """`alpha-crown@1` is 100 iterations at rate 0.1, slopes of the margins' own pass; the rest is spelt out."""
        slopes = "" if self.slopes == "output" else f"-{self.slopes}"
        search = unless(100, "i", self.iterations) + unless(0.1, "lr", self.learning_rate)
        limit = "" if self.time_limit is None else f"-t{self.time_limit:g}"
        return f"alpha-crown{slopes}{search}{limit}@1"
