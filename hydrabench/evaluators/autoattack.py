"""The standard AutoAttack ensemble: the authors' own code; we check every point it returns.

What we add to package `pyautoattack`: a seed per block, which attack broke which image, and a
second opinion. Upstream prints warnings about suspicious defences; here those that would make the
number meaningless are errors, and the rest is silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt

from hydrabench.config import Radius
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.evaluators.ball_settings import EPSILON, NORM, SEED
from hydrabench.evaluators.clean import attack_records, clean_breaks, clean_logits, require_finite
from hydrabench.evaluators.description import EvaluationSettings, Evaluator, robust_metrics
from hydrabench.evaluators.pgd import short_pgd
from hydrabench.ledger import AttackRecord
from hydrabench.threat import Norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block

ENSEMBLE = ("apgd-ce", "apgd-t", "fab-t", "square")  # in the authors' order
_NORMS = {"linf": "Linf", "l2": "L2"}


class AutoAttackSettings(EvaluationSettings):
    """The standard AutoAttack ensemble (APGD-CE, APGD-T, FAB-T, Square) in seeded blocks."""

    kind: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Radius
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """The protocol id."""
        return f"aa-standard{unless(0, 's', self.seed)}@1"


def evaluate_autoattack(network: nn.Module, block: Block, settings: AutoAttackSettings) -> list[AttackRecord]:
    """Run APGD-CE, APGD-T, FAB-T and Square, each on the images that are still robust.

    The attacks work in float32, as upstream does, and see one block as one batch; all four are
    seeded with a hash of (seed, block number), and the global random state is left as found. Fewer
    than ten classes are attacked with all their K - 1 targets instead of nine. We do not take
    upstream's word: each point it returns is projected into our ball (`attacks.project`, in the
    precision of the block; upstream's float32 arithmetic may leave the ball by a rounding error)
    and classified afresh, and only a misclassified one counts.

    In the records `broken_by` is "clean" (step 0) or the attack's name (step None: it does not
    tell); `margin` is that of the misclassified point, None for a robust image.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image (or the block, inside an attack) if a logit is NaN or
        infinite; HydrabenchError if `pyautoattack` is missing or the network is not one that the
        standard ensemble can judge (see `require_suitable`).
    Source: Croce and Hein (2020), arXiv:2003.01690, section 5.
    """
    from hydrabench.attacks import margin

    started = perf_counter()
    logits = require_suitable(network, block, settings)
    breaks = clean_breaks(logits, block)
    clean_margins = margin(logits, block.labels).tolist()
    margins = [lowest if broken else None for lowest, broken in zip(clean_margins, breaks, strict=True)]
    with _left_as_found(network, on_gpu=block.images.is_cuda):
        ensemble = _ensemble(network, block, settings, num_classes=logits.shape[1])
        for name in ENSEMBLE:
            rows = [row for row, broken in enumerate(breaks) if broken is None]
            if not rows:
                break
            for row, lowest in _break(network, block, rows, ensemble[name], settings).items():
                breaks[row], margins[row] = (name, None), lowest
    return attack_records(block, logits, breaks, margins, started=started)


def block_seed(seed: int, number: int) -> int:
    """The seed of one block's attacks: a hash of (seed, block number), in [0, 2^63)."""
    from hydrabench.runtime import stream

    return stream(seed, "autoattack", number).initial_seed() % 2**63


Perturb = Callable[["Tensor", "Tensor"], "Tensor"]


def _ensemble(
    network: nn.Module, block: Block, settings: AutoAttackSettings, *, num_classes: int
) -> dict[str, Perturb]:
    """The four attacks with the settings of upstream's "standard" version, by name."""
    import torch

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = network(images.to(block.images.dtype)).float()
        if not torch.isfinite(logits).all():
            raise NonFiniteError(
                f"block {block.number}: a logit is NaN or infinite during AutoAttack; "
                f"check the checkpoint, or evaluate with --precision float64"
            )
        return logits

    attack: Any = require_pyautoattack()(
        predict,
        norm=_NORMS[settings.norm],
        eps=float(settings.epsilon),
        seed=block_seed(settings.seed, block.number),
        version="standard",
        device=block.images.device,
    )
    attack.fab.targeted = True
    attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = min(9, num_classes - 1)
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    return {name: part.perturb for name, part in zip(ENSEMBLE, parts, strict=True)}


def _break(
    network: nn.Module, block: Block, rows: list[int], perturb: Perturb, settings: AutoAttackSettings
) -> dict[int, float]:
    """Attack some rows of a block. Returns: row -> margin of the point that broke it."""
    import torch

    from hydrabench.attacks import margin, project

    chosen = torch.tensor(rows, device=block.images.device)
    x, y = block.images[chosen], block.labels[chosen]
    # Upstream views gradients as (B, -1), which works for images in the ordinary memory layout only.
    points = perturb(x.float().contiguous(), y).detach().to(x)
    points = project(points, x, float(settings.epsilon), norm=settings.norm)
    with torch.no_grad():
        logits = network(points)
    require_finite(logits, [block.indices[row] for row in rows], "a logit of an adversarial image")
    wrong, margins = (logits.argmax(1) != y).tolist(), margin(logits, y).tolist()
    return {row: lowest for row, broken, lowest in zip(rows, wrong, margins, strict=True) if broken}


def require_pyautoattack() -> Any:
    """Return upstream's class. Raises: HydrabenchError that says how to get it."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise HydrabenchError(
            "AutoAttack needs the package pyautoattack, which is not installed; run: pip install pyautoattack"
        ) from error
    return AutoAttack


def require_suitable(network: nn.Module, block: Block, settings: AutoAttackSettings) -> Tensor:
    """Raise for networks that the standard ensemble cannot judge.

    These are upstream's checks of the class count, of outputs that are already probabilities (the
    attacks' gradients vanish) and of randomized networks, and the image side that Square's L2
    windows need. Its check for networks that differentiate inside the forward pass is left out: it
    replaces the process's trace function.
    Returns: the logits of the block, (B, K). Raises: HydrabenchError that says what to do instead; NonFiniteError
        naming the image whose logits are NaN or infinite.
    """
    import torch

    logits = clean_logits(network, block)
    classes, sides = logits.shape[1], block.images.shape[2:]
    if classes < 4:
        raise HydrabenchError(
            f"the standard AutoAttack needs at least 4 classes (its targeted loss compares four logits), "
            f"got {classes}; use --attack pgd"
        )
    if settings.norm == "l2" and min(sides) < 5:
        raise HydrabenchError(
            f"AutoAttack under L2 needs images of at least 5 x 5 pixels, got {tuple(sides)}; use --attack pgd"
        )
    if logits.min() >= 0 and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), rtol=0, atol=1e-5):
        raise HydrabenchError(
            "the network's outputs are probabilities, through which AutoAttack gets no useful gradients; "
            "let it return logits (take its final softmax away)"
        )
    again = clean_logits(network, block)
    difference = (again - logits).norm(dim=1) / logits.norm(dim=1).clamp_min(1e-10)
    if (difference > 1e-4).any():
        raise HydrabenchError(
            "the network gives different logits for the same images; the standard AutoAttack judges deterministic "
            "networks only"
        )
    return logits


def _require_suitable_block(network: nn.Module, block: Block, settings: AutoAttackSettings) -> None:
    import torch

    from hydrabench.runtime import exact_arithmetic

    with exact_arithmetic(), torch.no_grad():
        require_suitable(network, block, settings)


@contextmanager
def _left_as_found(network: nn.Module, *, on_gpu: bool) -> Iterator[None]:
    """Undo upstream's side effects: seeding, logging and parameter gradients.

    It seeds torch's global generators, warns through the logger "auto-attack" (of zero gradients,
    for every target), and FAB calls `backward`, which would fill the parameters' gradients.
    """
    import torch

    logger = logging.getLogger("auto-attack")
    disabled = logger.disabled
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    devices = [torch.cuda.current_device()] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        try:
            logger.disabled = True
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            logger.disabled = disabled
            for parameter in trained:
                parameter.requires_grad_(True)


AUTOATTACK = Evaluator(
    settings=AutoAttackSettings,
    evaluate=evaluate_autoattack,
    record=AttackRecord,
    metrics=robust_metrics,
    claims="upper",
    command="attack",
    heading="AutoAttack",
    meaning="right on the clean image and under every attack of standard AutoAttack, as its authors ship it",
    # APGD-CE, APGD-T and FAB-T on nine targets, 100 iterations each, and Square's 5000 queries
    passes=lambda _settings, _sizes: 100 * INPUT_GRADIENT * (1 + 9 + 9) + 5000,
    piece=short_pgd,
    options=(EPSILON, NORM, SEED),
    require=lambda _network, _settings: require_pyautoattack(),
    suits=_require_suitable_block,
    by_image=False,
)
