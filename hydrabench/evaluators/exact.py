"""The description of complete verification; `decided` computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt

from hydrabench.config.protocol import unless
from hydrabench.evaluators import radii
from hydrabench.evaluators.ball_settings import EPSILON, NORM, SEED
from hydrabench.evaluators.blocks import Blocks
from hydrabench.evaluators.description import (
    Computing,
    Evaluator,
    Line,
    Metric,
    Option,
    Ready,
    clean_metric,
    is_correct,
    verified_metrics,
)
from hydrabench.evaluators.verified_settings import SUBPROBLEMS, BoundSettings
from hydrabench.ledger import ExactRecord, RadiusRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


DECIDED_BLOCK = 10  # images that are decided, and lost when a run is killed, together
MAX_SUBPROBLEMS = Option(
    "max_subproblems",
    "Subproblems of exact for an image, which is unknown then.",
    "int",
    "exact",
    default=str(SUBPROBLEMS),
)
TIME_LIMIT = Option(
    "time_limit", "Time limit per image in seconds. Results then depend on the machine.", "float", "alpha-crown"
)


DECIDING_ENGINE = Option(
    "engine",
    "exact: branch-and-bound, or milp: mixed-integer programming, for small networks in L∞.",
    heading="exact",
    default="branch-and-bound",
)


class ExactSettings(BoundSettings):
    """Branch and bound until every image is verified, broken, or at its limit.

    max_subproblems: that are bounded for an image. time_limit: seconds for an image, None for no limit; with it, a run
    cannot be reproduced. engine: "milp" is mixed-integer programming instead, whose nodes count as subproblems; its
    verdicts rest on HiGHS's floating point. rigor: "standard" decides in float64; "sound" speaks of the network as it
    is stored, in exact arithmetic. seed: of the attack that comes before.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    kind: Literal["exact"] = "exact"
    max_subproblems: PositiveInt = SUBPROBLEMS
    time_limit: PositiveFloat | None = None
    engine: Literal["branch-and-bound", "milp"] = "branch-and-bound"
    rigor: Literal["standard", "sound"] = "standard"
    seed: NonNegativeInt = 0

    def conflicts(self) -> Iterator[str]:
        """Yield what mixed-integer programming cannot do."""
        yield from super().conflicts()
        if self.engine == "milp" and self.norm != "linf":
            yield f"engine: milp takes linf balls, got {self.norm}; leave the engine at branch-and-bound"
        if self.engine == "milp" and self.rigor != "standard":
            yield f"engine: milp rests on floating point, got rigor {self.rigor}; leave the engine at branch-and-bound"

    @property
    def protocol(self) -> str:
        """`exact@1` is branch and bound, 20,000 subproblems, standard rigor, seed 0; whatever differs is spelt out."""
        limit = unless(SUBPROBLEMS, "n", self.max_subproblems)
        limit += "" if self.time_limit is None else f"-t{self.time_limit:g}"
        engine = "" if self.engine == "branch-and-bound" else f"-{self.engine}"
        rigor = "" if self.rigor == "standard" else f"-{self.rigor}"
        return f"exact{limit}{engine}{rigor}{unless(0, 's', self.seed)}{self.radii_text}@1"


def points(network: Any, block: Block, settings: Any) -> tuple[Sequence[ExactRecord] | Sequence[RadiusRecord], Tensor]:
    """See `decided.exact_points`; with `search_radius`, see `radius_search.search_radii`."""
    from hydrabench.evaluators.decided import exact_points

    if getattr(settings, "search_radius", False):
        return radii.searched(network, block, settings, partial(exact_points, network))
    return exact_points(network, block, settings)


def evaluate(network: Any, block: Block, settings: Any) -> Sequence[ExactRecord] | Sequence[RadiusRecord]:
    """Return the records alone."""
    return points(network, block, settings)[0]


def _prepare(network: nn.Module, settings: ExactSettings, _computing: Computing) -> Ready:
    from hydrabench.bounds import prepared

    read = prepared(network)
    return Ready(lambda block: evaluate(read, block, settings), points=lambda block: points(read, block, settings))


def require_engine(network: nn.Module, settings: Any) -> None:
    """Raise for a layer without a rule, or without one in the settings' engine."""
    from hydrabench.bounds import program_of, read

    nodes = read(program_of(network))
    if settings.engine == "milp":
        from hydrabench.bounds.exact.formulation import require_piecewise_linear

        require_piecewise_linear(nodes)


def exact_metrics(lines: Sequence[Line], settings: Any) -> dict[str, Metric]:
    """Return clean accuracy and both sides of the robust one: what is verified, and what is not broken."""
    if getattr(settings, "search_radius", False):
        return radii.radii_metrics(lines, settings)
    unbroken = tuple(is_correct(line) and line.get("verdict") != "broken" for line in lines)
    return {
        "clean_accuracy": clean_metric(lines),
        "verified_accuracy": verified_metrics(lines, settings)["verified_accuracy"],
        "robust_accuracy": Metric(unbroken, label="not broken"),
    }


EXACT = Evaluator(
    settings=ExactSettings,
    evaluate=evaluate,
    points=points,
    keeps=lambda _settings: True,
    record=ExactRecord,
    metrics=exact_metrics,
    claims="lower",
    command="certify",
    heading=lambda settings: f"exact{' radii' * settings.search_radius}",
    meaning=lambda settings: (
        "every margin proved positive in the whole ball by "
        + ("mixed-integer programming in floating point" if settings.engine == "milp" else "branch and bound")
        + (", rounded outwards, so that it holds in exact arithmetic" if settings.rigor == "sound" else "")
    ),
    passes=None,
    options=(
        EPSILON,
        NORM,
        *radii.OPTIONS,
        MAX_SUBPROBLEMS,
        TIME_LIMIT,
        DECIDING_ENGINE,
        Option("rigor", "standard or sound.", heading="exact", default="standard"),
        SEED,
    ),
    blocks=lambda settings, _network, _shape: Blocks(1 if settings.search_radius else DECIDED_BLOCK),
    variant=lambda values: (ExactSettings, RadiusRecord) if values.get("search_radius") else None,
    more=radii.more,
    require=require_engine,
    prepare=_prepare,
    frugal="choose cascade",
    repeatable=lambda settings: settings.time_limit is None,
)
