"""The descriptions of the evaluators that bound margins over a ball; `verified` computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hydrabench.config.passes import BOXES
from hydrabench.evaluators import exact, radii
from hydrabench.evaluators.ball_settings import EPSILON, NORM
from hydrabench.evaluators.blocks import BLOCK_SIZE, Blocks, blocks_of
from hydrabench.evaluators.description import Computing, Evaluator, Line, Metric, Option, Ready, Sizes, verified_metrics
from hydrabench.evaluators.verified_settings import AlphaCrownSettings, Settings, VerifiedSettings
from hydrabench.ledger import ExactRecord, RadiusRecord, Record, VerifiedRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block

SEARCHED_BLOCK = 10  # images of alpha-crown, and where auto_LiRPA bounds, of which little is known beforehand

IN_TURN = Option(
    "methods", "Cascade: in order; alpha-crown, exact last.", "list", "Bounds", default="ibp,crown-ibp,crown"
)
ENGINE = Option("engine", "hydrabench, or auto_lirpa: a second opinion in L∞.", heading="Bounds", default="hydrabench")
RIGOR = Option(
    "rigor",
    "ibp, crown-ibp: standard, or sound: rounded outwards, or deployed: so that float32 inference cannot break it, "
    "either.",
    default="standard",
)
SEARCH_OPTIONS = (
    Option("slopes", "Optimise those of the output, or all (slower).", heading="alpha-crown", default="output"),
    Option("iterations", "Iterations of the search.", "int", "alpha-crown", default="100"),
    Option("learning_rate", "Learning rate of the search.", "float", "alpha-crown", default="0.1"),
    exact.TIME_LIMIT,
)
CHEAPER = "--method ibp or crown-ibp, seconds for an image"
PROVED = "every margin provably positive in the whole ball, by"
RIGORS = {
    "sound": ", rounded outwards, so that it holds in exact arithmetic",
    "deployed": ", rounded outwards, so that it holds for the network as it is computed, in any order of summation",
}


def evaluate(
    network: Any, block: Block, settings: Settings
) -> Sequence[VerifiedRecord] | Sequence[ExactRecord] | Sequence[RadiusRecord]:
    """See `verified.evaluate_verified`; with `search_radius`, see `radius_search.search_radii`."""
    return points(network, block, settings)[0]


def points(
    network: Any, block: Block, settings: Settings
) -> tuple[Sequence[VerifiedRecord] | Sequence[ExactRecord] | Sequence[RadiusRecord], Tensor]:
    """Return the records, and the adversarial examples of images that are broken, of others any point, (B, C, H, W)."""
    if isinstance(settings, VerifiedSettings) and settings.decides:
        return exact.points(network, block, settings)
    from hydrabench.evaluators.verified import evaluate_verified

    def bound(some: Block, at: Settings) -> tuple[Sequence[VerifiedRecord], Tensor]:
        return evaluate_verified(network, some, at), some.images

    if settings.search_radius:
        return radii.searched(network, block, settings, bound)
    return bound(block, settings)


def _keeps(settings: Any) -> bool:
    """Return whether images may be broken, not only left open."""
    return bool(settings.search_radius) or "exact" in getattr(settings, "methods", ())


def _prepare(network: nn.Module, settings: Settings, _computing: Computing) -> Ready:
    """Read the network once for all blocks, where our own bounds pass it."""
    from hydrabench.bounds import prepared

    read = prepared(network) if settings.uses_our_bounds else network
    return Ready(lambda block: evaluate(read, block, settings), points=lambda block: points(read, block, settings))


def _require(network: nn.Module, settings: Settings) -> None:
    """Raise for a layer without a rule, or if auto_LiRPA is needed and missing."""
    from hydrabench.bounds import program_of, read, require_auto_lirpa

    if settings.needs_auto_lirpa:
        require_auto_lirpa()
    if settings.uses_our_bounds:
        read(program_of(network))
    if settings.engine == "milp":
        exact.require_engine(network, settings)


def _require_readable(network: nn.Module, block: Block, settings: Settings) -> None:
    from hydrabench.evaluators.verified import require_readable

    require_readable(network, block, settings)


# How long it takes -----------------------------------------------------------------------------


def _blocks_of_passes(settings: VerifiedSettings, network: nn.Module, shape: tuple[int, int, int]) -> Blocks:
    """Return the blocks of methods with a backward pass for every unstable neuron: up to hours an image."""
    from hydrabench.bounds import image_operations

    if not settings.uses_our_bounds:
        return Blocks(SEARCHED_BLOCK)
    methods = settings.methods if settings.kind == "cascade" else (settings.kind,)
    operations = image_operations(network, shape, methods) * radii.trials_of(settings)
    if settings.searches:
        return _blocks_with_search(settings, network, shape, operations, blocks_of(operations, SEARCHED_BLOCK))
    rest = "less if few neurons are undecided"
    most = exact.DECIDED_BLOCK if settings.decides else BLOCK_SIZE
    if settings.search_radius:
        most = 1 if settings.decides else radii.SEARCH_BLOCK
    return Blocks(blocks_of(operations, most), operations, rest=rest, cheaper=CHEAPER)


def _blocks_of_search(settings: AlphaCrownSettings, network: nn.Module, shape: tuple[int, int, int]) -> Blocks:
    from hydrabench.bounds import image_operations

    if not settings.uses_our_bounds:
        return Blocks(SEARCHED_BLOCK)
    operations = image_operations(network, shape, ("crown",)) * radii.trials_of(settings)
    return _blocks_with_search(settings, network, shape, operations, SEARCHED_BLOCK)


def _blocks_with_search(
    settings: Settings, network: nn.Module, shape: tuple[int, int, int], operations: float, size: int
) -> Blocks:
    from hydrabench.bounds import search_operations

    trials, limit = radii.trials_of(settings), settings.time_limit
    search = search_operations(network, shape, settings.iterations) * trials
    rest = "many times that with slopes all"
    return Blocks(size, operations, search, limit and limit * trials, rest, CHEAPER)


def _boxes(settings: VerifiedSettings, _network: nn.Module, _shape: tuple[int, int, int]) -> Blocks:
    return Blocks(radii.SEARCH_BLOCK if settings.search_radius else BLOCK_SIZE)


def _passes(passes: Callable[[Any, Sizes], float], settings: Any, sizes: Sizes) -> float:
    """Forward passes of one bound, or of a search for radii."""
    if not settings.search_radius:
        return passes(settings, sizes)
    return radii.trials_of(settings) * passes(settings, sizes) + radii.attack_passes(settings)


# Descriptions ----------------------------------------------------------------------------------


def _metrics(lines: Sequence[Line], settings: Any) -> dict[str, Metric]:
    """Return the metrics of radii or margins, those of a cascade that ends with exact as there."""
    if getattr(settings, "search_radius", False):
        return radii.radii_metrics(lines, settings)
    return (exact.exact_metrics if "exact" in getattr(settings, "methods", ()) else verified_metrics)(lines, settings)


def _variant(settings: type[Any], values: Line) -> tuple[type[Any], type[Record]] | None:
    if values.get("search_radius"):
        return settings, RadiusRecord
    return (settings, ExactRecord) if "exact" in values.get("methods", ()) else None


def _evaluator(
    heading: str,
    means: str | Callable[[Any], str],
    passes: Callable[[Any, Sizes], float] | None = None,
    *,
    options: tuple[Option, ...] = (),
    frugal: str = "",
    settings: type[Any] = VerifiedSettings,
    blocks: Callable[..., Blocks] = _blocks_of_passes,
) -> Evaluator:
    def meaning(settings: Any) -> str:
        how = means if isinstance(means, str) else means(settings)
        return f"{PROVED} {how}{RIGORS.get(getattr(settings, 'rigor', 'standard'), '')}"

    return Evaluator(
        settings=settings,
        evaluate=evaluate,
        points=points,
        record=VerifiedRecord,
        claims="lower",
        command="certify",
        heading=lambda settings: f"{heading}{' radii' * settings.search_radius}",
        meaning=meaning,
        passes=passes and partial(_passes, passes),
        options=(EPSILON, NORM, *radii.OPTIONS, *options),
        blocks=blocks,
        require=_require,
        suits=_require_readable,
        prepare=_prepare,
        frugal=frugal,
        repeatable=lambda settings: settings.time_limit is None,
        metrics=_metrics,
        variant=partial(_variant, settings),
        more=radii.more,
        keeps=_keeps,
    )


IBP = _evaluator(
    "IBP",
    "interval bound propagation",
    lambda _settings, _sizes: 1 + BOXES,
    options=(ENGINE, RIGOR),
    blocks=_boxes,
)
SYMBOLIC = _evaluator(
    "symbolic intervals",
    "symbolic intervals (same-slope CROWN)",
    options=(RIGOR,),
    frugal="choose crown-ibp",
)
CROWN_IBP = _evaluator(
    "CROWN-IBP",
    "CROWN over interval bounds",
    lambda _settings, sizes: 1 + BOXES + sizes.classes - 1,
    options=(ENGINE, RIGOR),
    frugal="choose ibp",
    blocks=_boxes,
)
CROWN = _evaluator("CROWN", "CROWN for every neuron", options=(ENGINE, RIGOR), frugal="choose crown-ibp")
CASCADE = _evaluator(
    "cascade",
    lambda settings: (
        f"the first of {', '.join(settings.methods)} that proves it"
        + ", exact by mixed-integer programming in floating point" * (settings.engine == "milp")
    ),
    options=(IN_TURN, RIGOR, *SEARCH_OPTIONS, exact.MAX_SUBPROBLEMS, exact.DECIDING_ENGINE),
    frugal="choose crown-ibp",
)
ALPHA_CROWN = _evaluator(
    "α-CROWN",
    "CROWN with optimised slopes",
    options=(ENGINE, *SEARCH_OPTIONS),
    frugal="choose crown-ibp",
    settings=AlphaCrownSettings,
    blocks=_blocks_of_search,
)
