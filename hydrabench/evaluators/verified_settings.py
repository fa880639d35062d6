"""Settings of the bounds: `ibp` and its tighter relatives."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.protocol import unless
from hydrabench.evaluators.description import EvaluationSettings
from hydrabench.threat import Norm, radius_text

Method = Literal["ibp", "symbolic", "crown-ibp", "crown", "alpha-crown", "exact"]
CASCADE_METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
SOUND = ("ibp", "crown-ibp")  # what can be rounded outwards
AUTO_LIRPA = ("ibp", "crown-ibp", "crown")  # what it is called for; alpha-crown has settings of its own
SEARCH = ("slopes", "iterations", "learning_rate", "time_limit")
SUBPROBLEMS = 20_000  # of branch and bound, for an image
HALVINGS, MOST_HALVINGS = 6, 20  # of the largest radius, unless there is a tolerance; and with one


class BoundSettings(EvaluationSettings):
    """Base of the settings of whatever bounds a ball.

    search_radius: look for the largest verified and the smallest broken radius of each image, `epsilon` being the
    largest that is tried. tolerance: between radii that are tried, at most; None: epsilon / 2**`HALVINGS`.
    """

    norm: Norm = "linf"
    epsilon: Radius
    search_radius: bool = False
    tolerance: Radius | None = None

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong with a search for radii."""
        if self.tolerance is not None and not self.search_radius:
            yield "tolerance: is an option of search_radius, which is off; add it"
        if self.search_radius and not self.epsilon:
            yield "epsilon: is the largest radius that is searched, got 0; give for example 8/255"
        elif self.tolerance is not None and not self.epsilon / 2**MOST_HALVINGS <= self.tolerance <= self.epsilon:
            yield (
                f"tolerance: lies between epsilon / 2^{MOST_HALVINGS} and epsilon, {radius_text(self.epsilon)}, got "
                f"{radius_text(self.tolerance)}; leave it out for epsilon / {2**HALVINGS}"
            )

    @property
    def halvings(self) -> int:
        """Return how often the largest radius is halved: neighbouring radii are epsilon / 2**halvings apart."""
        return HALVINGS if self.tolerance is None else ceil(self.epsilon / self.tolerance - 1).bit_length()

    def at(self, radius: Fraction) -> Any:
        """Return the same settings for one radius."""
        return self.model_copy(update={"epsilon": radius, "search_radius": False, "tolerance": None})

    @property
    def radii_text(self) -> str:
        """Return the part of a protocol id that is about a search for radii."""
        step = "" if self.tolerance is None else f"-tol{radius_text(self.tolerance).replace('/', '_')}"
        return f"-radii{step}" if self.search_radius else ""


class MarginSettings(BoundSettings):
    """Base of the settings of a bound of margins over a ball. engine: whose bounds they are."""

    model_config = ConfigDict(allow_inf_nan=False)
    engine: str = "hydrabench"

    @property
    def uses_our_bounds(self) -> bool:
        """True if our own bounds pass the network."""
        return self.engine != "auto_lirpa"

    @property
    def needs_auto_lirpa(self) -> bool:
        """True if auto_LiRPA computes the bounds."""
        return self.engine == "auto_lirpa"


class VerifiedSettings(MarginSettings):
    """A sound lower bound of every margin over a ball; `cascade` tries `methods` until one proves it.

    slopes, iterations, learning_rate, time_limit: of alpha-crown, the last one of `methods` or before exact.
    max_subproblems, time_limit: of exact, see `exact.ExactSettings`. engine: "milp" decides what is left to exact.
    rigor: "standard" computes in the precision of the run, and again in float64 where rounding could turn a verdict;
    "sound" rounds outwards in float64 and claims what survives; "deployed" claims what survives the network's own
    rounding, too; see `bounds.sound`.
    """

    kind: Literal["ibp", "symbolic", "crown-ibp", "crown", "cascade"]
    methods: tuple[Method, ...] = Field(CASCADE_METHODS, min_length=1)
    engine: Literal["hydrabench", "auto_lirpa", "milp"] = "hydrabench"
    rigor: Literal["standard", "sound", "deployed"] = "standard"
    slopes: Literal["output", "all"] = "output"
    iterations: PositiveInt = 100
    learning_rate: PositiveFloat = 0.1
    time_limit: PositiveFloat | None = None
    max_subproblems: PositiveInt = SUBPROBLEMS

    def conflicts(self) -> Iterator[str]:
        """Yield what does not fit: methods out of place, and what an engine or a rigor is not for."""
        yield from super().conflicts()
        methods = ",".join(self.methods)
        if self.kind != "cascade" and "methods" in self.model_fields_set and self.methods != CASCADE_METHODS:
            yield f"methods: belong to kind cascade, got {methods} with kind {self.kind}"
        if len(set(self.methods)) < len(self.methods):
            yield f"methods: names one twice, got {methods}; name each once"
        yield from self._conflicts_of_search(methods)
        if self.engine == "auto_lirpa" and (self.kind not in AUTO_LIRPA or self.norm != "linf"):
            yield (
                f"engine: auto_lirpa bounds linf balls by {', '.join(AUTO_LIRPA)}, got {self.norm} and {self.kind}; "
                "leave the engine at hydrabench"
            )
        if self.engine == "milp" and (not self.decides or self.norm != "linf"):
            yield (
                f"engine: milp is for exact, as the last of methods, in linf balls, got {self.norm} and {methods}; "
                "write for example ibp,crown-ibp,crown,exact, or leave the engine out"
            )
        rigorous = self.rigor != "standard"
        if rigorous and (self.kind not in SOUND or self.norm != "linf" or self.engine != "hydrabench"):
            yield (
                f"rigor: {self.rigor} is for {' and '.join(SOUND)} in linf, by the engine hydrabench; got {self.kind} "
                f"in {self.norm}, by {self.engine}; change that, or leave the rigor at standard"
            )

    def _conflicts_of_search(self, methods: str) -> Iterator[str]:
        """Yield what does not fit alpha-crown and exact: their places in `methods`, their options without them."""
        if self.decides and (self.methods[-1] != "exact" or len(self.methods) == 1):
            yield (
                f"methods: exact, which decides what all others leave open, comes last and after another one, got "
                f"{methods}; write for example ibp,crown-ibp,crown,exact"
            )
        if not self.decides and self._differs("max_subproblems"):
            yield f"max_subproblems: is an option of exact, which is none of methods {methods}; add it"
        if not self.searches:
            for key in SEARCH:
                if self._differs(key) and not (key == "time_limit" and self.decides):
                    yield f"{key}: is an option of alpha-crown, which is none of methods {methods}; add it"
            return
        before = self.methods[:-1] if self.decides else self.methods
        if before[-1:] != ("alpha-crown",) or len(before) == 1:
            yield (
                f"methods: alpha-crown, by far the slowest, comes last and after a cheaper one, got {methods}; "
                "write for example ibp,crown-ibp,crown,alpha-crown"
            )

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @property
    def searches(self) -> bool:
        """True if alpha-crown is one of the methods."""
        return "alpha-crown" in self.methods

    @property
    def decides(self) -> bool:
        """True if exact is one of the methods."""
        return "exact" in self.methods

    @property
    def unused(self) -> frozenset[str]:
        """The settings of methods that are not called, and `methods`, which the meaning of a cascade names."""
        search = SEARCH if not (self.searches or self.decides) else () if self.searches else SEARCH[:-1]
        rounding = () if self.kind in SOUND else ("rigor",)
        return frozenset(("methods", *search, *rounding, *(() if self.decides else ("max_subproblems",))))

    @property
    def protocol(self) -> str:
        """The protocol id names the bound; `cascade@1` is ibp, crown-ibp, crown, whatever differs is spelt out.

        Version 2 ends with alpha-crown of our own engine, version 1 did with auto_LiRPA's.
        """
        methods = "" if self.methods == CASCADE_METHODS else "-" + "+".join(self.methods)
        limit = unless(SUBPROBLEMS, "n", self.max_subproblems)
        engine = "" if self.engine == "hydrabench" else f"-{self.engine}"
        rigor = "" if self.rigor == "standard" else f"-{self.rigor}"
        more = f"{_search_text(self)}{limit}{engine}{rigor}{self.radii_text}"
        return f"{self.kind}{methods}{more}@{2 if self.searches else 1}"


class AlphaCrownSettings(MarginSettings):
    """CROWN with optimised slopes; `bounds.Search` says what the options mean."""

    kind: Literal["alpha-crown"] = "alpha-crown"
    engine: Literal["hydrabench", "auto_lirpa"] = "hydrabench"
    slopes: Literal["output", "all"] = "output"
    iterations: PositiveInt = 100
    learning_rate: PositiveFloat = 0.1
    time_limit: PositiveFloat | None = None  # seconds for each image; with it, a run cannot be reproduced

    def conflicts(self) -> Iterator[str]:
        """Yield what auto_LiRPA is not asked for."""
        yield from super().conflicts()
        if self.engine == "auto_lirpa" and self.norm != "linf":
            yield f"engine: auto_lirpa bounds linf balls, got {self.norm}; leave the engine at hydrabench"

    @property
    def protocol(self) -> str:
        """`alpha-crown@2` is 100 iterations at rate 0.1, slopes of the margins' own pass; the rest is spelt out.

        Version 1 was made by auto_LiRPA; it is called `alpha-crown-auto_lirpa@1` since there is an engine of our own.
        """
        engine, version = ("-auto_lirpa", 1) if self.needs_auto_lirpa else ("", 2)
        return f"alpha-crown{_search_text(self)}{engine}{self.radii_text}@{version}"


Settings = VerifiedSettings | AlphaCrownSettings


def _search_text(settings: Settings) -> str:
    slopes = "" if settings.slopes == "output" else f"-{settings.slopes}"
    search = unless(100, "i", settings.iterations) + unless(0.1, "lr", settings.learning_rate)
    return slopes + search + ("" if settings.time_limit is None else f"-t{settings.time_limit:g}")
