"""AutoAttack: the authors' own attacks, one after another; we check every point that they return.

The unit of work is one attack on a share of the images (`attempt`), so that a run can be cut into shares, spread over
processes and continued; what a record says follows from an image's attempts alone (`concluding.conclude`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.evaluators.autoattack_settings import (
    PASSES_OF_VERDICT,
    SHORT_PGD,
    AutoAttackSettings,
    fitted_to_classes,
    passes_of,
)
from hydrabench.evaluators.ball_settings import EPSILON, KEEP, NORMS, SEED, SKIP_CERTIFIED
from hydrabench.evaluators.clean import clean_logits, require_eval_mode, require_finite
from hydrabench.evaluators.concluding import conclude, saved_by_cascade
from hydrabench.evaluators.description import Evaluator, InTurn, Option, robust_metrics
from hydrabench.evaluators.pgd import PgdSettings, pgd_points, short_pgd
from hydrabench.evaluators.upstream_attacks import SHORTEST_SIDE, require_upstream
from hydrabench.ledger import AS_IT_IS, AttackRecord, Attempt
from hydrabench.threat import NORM_TEXTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


def evaluate_autoattack(network: nn.Module, block: Block, settings: AutoAttackSettings) -> list[AttackRecord]:
    """Run the attacks of `settings`, each on the images that are still robust.

    We do not take upstream's word: each point it returns is projected into our ball (`attacks.project`, in the
    precision of the block; upstream's float32 arithmetic may leave the ball by a rounding error) and classified afresh,
    and only a misclassified one counts.

    In the records `broken_by` is "clean" (step 0) or the attack's name (step None: it does not
    tell); `margin` is that of the misclassified point, None for a robust image.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the images if a logit is NaN or infinite; HydrabenchError if `pyautoattack` is missing
        or the network is not one that these attacks can judge (see `require_suitable`).
    Source: Croce and Hein (2020), arXiv:2003.01690, section 5.
    """
    return autoattack_points(network, block, settings)[0]


def autoattack_points(
    network: nn.Module, block: Block, settings: AutoAttackSettings
) -> tuple[list[AttackRecord], Tensor]:
    """Return the records, and the points that broke the images, of the others those of the last attack."""
    require_suitable(network, block, settings)
    found: list[list[Attempt]] = [[] for _ in block.indices]
    points = block.images.clone()
    for name in (AS_IT_IS, *settings.order):
        rows = [row for row, attempts in enumerate(found) if not any(one.broken for one in attempts)]
        if rows:
            attempts, points[rows] = attempt(network, block.rows(rows), name, settings)
            for row, one in zip(rows, attempts, strict=True):
                found[row].append(one)
    about = zip(block.indices, block.shas, block.labels.tolist(), found, strict=True)
    return [conclude(index, sha, label, attempts) for index, sha, label, attempts in about], points


def attempt(
    network: nn.Module,
    block: Block,
    name: str,
    settings: AutoAttackSettings,
    *,
    heard: Callable[[], None] = lambda: None,
) -> tuple[list[Attempt], Tensor]:
    """Run one attack on images that none has broken yet.

    Args:
        block: the images; its number decides the random draws where a verdict depends on the whole block.
        name: "clean", which classifies the images as they are, or one of `settings.order`.
        heard: called after every forward pass of the attack.
    Returns: one attempt for each image, in order, and the points, (B, C, H, W). Of a randomised network a `loss` is in
        shares of the 20 passes.
    Raises: as `evaluate_autoattack`.
    """
    from hydrabench.attacks import Padded, margin

    started = perf_counter()
    steady: nn.Module = Padded(network) if settings.by_image else network
    if name == SHORT_PGD:
        return _short_pgd(steady, block, settings)
    points = block.images if name == AS_IT_IS else _points(network, block, name, settings, heard)
    logits = _logits(steady, replace(block, images=points), name, settings)
    margins, predictions = margin(logits, block.labels).tolist(), logits.argmax(1).tolist()
    seconds = (perf_counter() - started) / len(block.indices)
    about = zip(block.indices, block.labels.tolist(), margins, predictions, strict=True)
    return [
        Attempt(index, name, prediction != label, -lowest, prediction, seconds)
        for index, label, lowest, prediction in about
    ], points


def _logits(network: nn.Module, block: Block, name: str, settings: AutoAttackSettings) -> Tensor:
    """Classify points afresh, (B, K): their logits, or the votes of several passes through a randomised network.

    Args: block: the points in place of the images. name: of the attack that made them.
    """
    import torch

    from hydrabench.attacks.randomised import vote_shares

    if settings.ensemble == "rand":
        require_eval_mode(network)
        seed = seed_of(settings, block.number, "verdict", name)
        try:
            return vote_shares(network, block.images, seed=seed, passes=PASSES_OF_VERDICT)
        except ValueError as error:
            raise NonFiniteError(f"images {block.indices[0]} to {block.indices[-1]}: {error}") from error
    if name == AS_IT_IS:
        return clean_logits(network, block)
    with torch.no_grad():
        logits: Tensor = network(block.images)
    require_finite(logits, block.indices, "a logit of an adversarial image")
    return logits


def _points(
    network: nn.Module, block: Block, name: str, settings: AutoAttackSettings, heard: Callable[[], None]
) -> Tensor:
    """Run one of upstream's attacks. Returns: its points inside our ball, in the precision of the block."""
    import torch

    from hydrabench.attacks import project
    from hydrabench.attacks.mixed import MixedGradients
    from hydrabench.attacks.randomised import Reseeded
    from hydrabench.attacks.upstream import UpstreamAttack, attack_points

    with torch.no_grad():
        classes = network(block.images[:1]).shape[1]
    attacked = MixedGradients(network) if settings.mixed else network
    if settings.ensemble == "rand":
        attacked = Reseeded(attacked, seed_of(settings, block.number, "passes", name))
    attack = UpstreamAttack(
        name,
        settings.ensemble,
        settings.norm,
        float(settings.epsilon),
        classes,
        seed_of(settings, block.number),
        alone=settings.by_image,
        targets=settings.apgd_targets,
    )
    try:
        points = attack_points(attacked, block.images, block.labels, attack, heard=heard)
    except NonFiniteError as error:
        raise NonFiniteError(f"images {block.indices[0]} to {block.indices[-1]}, {name}: {error}") from error
    return project(points.to(block.images), block.images, float(settings.epsilon), norm=settings.norm)


def _short_pgd(network: nn.Module, block: Block, settings: AutoAttackSettings) -> tuple[list[Attempt], Tensor]:
    """Ten steps of PGD on the cross entropy, whose every point is classified."""
    short = PgdSettings(norm=settings.norm, epsilon=settings.epsilon, steps=10, losses=("ce",), seed=settings.seed)
    short = short.model_copy(update={"mixed": settings.mixed})
    records, points = pgd_points(network, block, short)
    return [
        Attempt(record.index, SHORT_PGD, not record.robust, -(record.margin or 0.0), None, record.seconds)
        for record in records
    ], points


def seed_of(settings: AutoAttackSettings, number: int, *use: str) -> int:
    """The seed of all draws, in [0, 2^63): of a whole run, or of one block where the block decides the verdict.

    Args: use: what is drawn, beside upstream's own numbers.
    """
    from hydrabench.runtime import stream

    key = (settings.protocol,) if settings.by_image else (number,)
    return stream(settings.seed, "autoattack", *key, *use).initial_seed() % 2**63


def require_suitable(network: nn.Module, block: Block, settings: AutoAttackSettings) -> None:
    """Raise for networks that these attacks are not defined for: of too few classes, or too small for Square's windows.

    A randomised network has to draw from the global generators, so that its draws can be seeded.

    Raises: HydrabenchError that says what to do instead; NonFiniteError naming the image whose logits are NaN or
        infinite.
    """
    from hydrabench.attacks.randomised import repeats

    logits = clean_logits(network, block)
    classes, sides = logits.shape[1], block.images.shape[2:]
    if fitted_to_classes(settings, classes) != settings:
        raise HydrabenchError(
            f"{settings.protocol} needs at least 4 classes (its targeted loss compares four logits), got {classes}; "
            f"name the attacks that are defined with --attacks {','.join(fitted_to_classes(settings, classes).attacks)}"
        )
    if settings.ensemble == "rand" and not repeats(network, block.images):
        raise HydrabenchError(
            "the network draws random numbers that no seed of torch, numpy or Python decides, so its verdicts cannot "
            "be made again; let it draw from torch's global generator"
        )
    if settings.norm != "linf" and "square" in settings.order and min(sides) < SHORTEST_SIDE:
        others = ",".join(name for name in settings.order if name not in ("square", SHORT_PGD))
        raise HydrabenchError(
            f"Square under {NORM_TEXTS[settings.norm]} needs images of at least 5 x 5 pixels, got {tuple(sides)}; name "
            f"the other attacks with --attacks {others}"
        )


def _require_suitable_block(network: nn.Module, block: Block, settings: AutoAttackSettings) -> None:
    import torch

    from hydrabench.runtime import exact_arithmetic

    with exact_arithmetic(), torch.no_grad():
        require_suitable(network, block, settings)


def _heading(settings: Any) -> str:
    name = getattr(settings, "ensemble", "standard")
    named = "+".join(getattr(settings, "attacks", ()))
    text = "AutoAttack" if name == "standard" and not named else f"AutoAttack ({named or name})"
    return f"PGD-10, then {text}" if getattr(settings, "cascade", False) else text


def _meaning(settings: Any) -> str:
    names = ", ".join(settings.order)
    votes = f", by most of {PASSES_OF_VERDICT} passes" if getattr(settings, "ensemble", "") == "rand" else ""
    return f"right on the clean image and under each of the AutoAttack authors' own attacks in turn: {names}{votes}"


AUTOATTACK = Evaluator(
    settings=AutoAttackSettings,
    evaluate=evaluate_autoattack,
    points=autoattack_points,
    record=AttackRecord,
    metrics=robust_metrics,
    claims="upper",
    command="attack",
    heading=_heading,
    meaning=_meaning,
    passes=lambda settings, sizes: 1 + sum(passes_of(settings, name, sizes.classes) for name in settings.order),
    piece=short_pgd,
    options=(
        EPSILON,
        NORMS,
        SEED,
        SKIP_CERTIFIED,
        KEEP,
        Option("ensemble", "standard, plus or rand: the AutoAttack authors' versions.", default="standard"),
        Option("attacks", "Only these attacks of AutoAttack, e.g. apgd-ce,square.", "list"),
        Option("cascade", "Ten steps of PGD first, AutoAttack on what they leave.", "flag"),
    ),
    require=require_upstream,
    suits=_require_suitable_block,
    fitted=fitted_to_classes,
    by_image=lambda settings: settings.by_image,
    in_turn=InTurn(
        attacks=lambda settings: (AS_IT_IS, *settings.order),
        attempt=attempt,
        conclude=conclude,
        passes=passes_of,
        closing=saved_by_cascade,
    ),
)
