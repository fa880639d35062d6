"""An attack on the smoothed classifier, so that its certified accuracy has an empirical upper bound beside it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hydrabench.config import Radius
from hydrabench.config.fields import Noise
from hydrabench.config.passes import INPUT_GRADIENT
from hydrabench.config.protocol import unless
from hydrabench.errors import NonFiniteError
from hydrabench.evaluators.ball_settings import EPSILON, KEEP, SEED, KeepingSettings
from hydrabench.evaluators.clean import require_eval_mode
from hydrabench.evaluators.description import Evaluator, Line, Metric, Option, is_correct
from hydrabench.evaluators.pgd import short_pgd
from hydrabench.ledger import SmoothAttackRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block

GROUP = 8  # images whose noisy copies share a forward pass
CHUNK_OF_VOTES = 500
SMOOTH_PGD = "smooth-pgd"


class SmoothAttackSettings(KeepingSettings):
    """PGD on the soft smoothed classifier; a break is what a fresh majority vote shows with confidence.

    copies: noisy copies over which a gradient is averaged. draws: of fresh noise for each verdict. alpha: probability,
    in (0, 1), with which the verdict that another class leads may be wrong.
    """

    kind: Literal["smoothed"] = "smoothed"
    norm: Literal["l2"] = "l2"
    epsilon: Radius
    sigma: Noise = 0.25
    steps: PositiveInt = 20
    copies: PositiveInt = 16
    draws: PositiveInt = 1000
    alpha: float = Field(0.001, gt=0, lt=1)
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`smooth-pgd-20@1` is 20 steps, 16 copies, 1000 draws, alpha 0.001."""
        more = f"{unless(16, 'm', self.copies)}{unless(1000, 'n', self.draws)}{unless(0.001, 'a', self.alpha)}"
        return f"smooth-pgd-{self.steps}{more}{unless(0, 's', self.seed)}@1"


def evaluate_smooth_attack(
    network: nn.Module, block: Block, settings: SmoothAttackSettings
) -> list[SmoothAttackRecord]:
    """Attack the smoothed classifier at each image, and judge the image and the last point by fresh noise.

    A point is broken if, among `draws` fresh noisy copies, the class with the most votes is not the label and a fair
    coin splits the votes of the two so unevenly with probability `alpha` at most. What is not shown to be wrong counts
    as robust, so that the share of robust images bounds the accuracy from above. An image that is already broken
    without an attack is broken by "clean". All noise of an image comes from streams of its own.

    Args:
        network: base classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Salman et al. (2019), arXiv:1906.04584, section 2.2; the test is that of Cohen et al.'s PREDICT.
    """
    return smooth_attack_points(network, block, settings)[0]


def smooth_attack_points(
    network: nn.Module, block: Block, settings: SmoothAttackSettings
) -> tuple[list[SmoothAttackRecord], Tensor]:
    """Return the records, and where PGD ended, (B, C, H, W)."""
    import torch

    require_eval_mode(network)
    records, ends = [], []
    for start in range(0, len(block.indices), GROUP):
        rows = list(range(start, min(start + GROUP, len(block.indices))))
        started, part = perf_counter(), block.rows(rows)
        points = _attacked(network, part, settings)
        found = [_judge(network, part, points, row, settings) for row in range(len(rows))]
        share = (perf_counter() - started) / len(rows)
        records += [SmoothAttackRecord(**one, seconds=share) for one in found]
        ends.append(points)
    return records, torch.cat(ends)


def _attacked(network: nn.Module, block: Block, settings: SmoothAttackSettings) -> Tensor:
    import torch

    from hydrabench.attacks import default_step_size
    from hydrabench.attacks.smoothed import smoothed_pgd

    noise = torch.stack([_noise(block, index, "attack", settings.copies, settings) for index in block.indices])
    epsilon = float(settings.epsilon)
    size = default_step_size(epsilon, settings.steps)
    return smoothed_pgd(
        network, block.images, block.labels, noise, epsilon=epsilon, steps=settings.steps, step_size=size
    )


def _noise(block: Block, index: int, use: str, count: int, settings: SmoothAttackSettings) -> Tensor:
    """Draw Gaussian noise for one image, (count, C, H, W), from a stream of its own."""
    import torch

    from hydrabench.runtime import stream

    generator = stream(settings.seed, "smooth-attack", use, index, version=2)
    drawn = torch.randn((count, *block.images.shape[1:]), generator=generator)
    return (settings.sigma * drawn).to(block.images)


def _judge(
    network: nn.Module, block: Block, points: Tensor, row: int, settings: SmoothAttackSettings
) -> dict[str, Any]:
    """Return the fields of an image's record, but for the seconds."""
    index, label = block.indices[row], int(block.labels[row])
    about = {"index": index, "input_sha": block.shas[row], "label": label}
    prediction = -1
    for broken_by, images in (("clean", block.images), (SMOOTH_PGD, points)):
        votes = _votes(network, block, images[row], row, broken_by, settings)
        prediction = votes.index(max(votes)) if broken_by == "clean" else prediction
        if _rival(votes, label, settings) is not None:
            return {**about, "prediction": prediction, "robust": False, "broken_by": broken_by, "votes": votes}
    return {**about, "prediction": prediction, "robust": True, "broken_by": None, "votes": votes}


def _votes(
    network: nn.Module, block: Block, image: Tensor, row: int, use: str, settings: SmoothAttackSettings
) -> list[int]:
    """Count the classes of an image, (C, H, W), under fresh noise. use: what is judged, which has its own stream."""
    from hydrabench.attacks.smoothed import noisy_votes

    noise = _noise(block, block.indices[row], f"verdict {use}", settings.draws, settings)
    try:
        votes: list[int] = noisy_votes(network, image, noise, chunk=CHUNK_OF_VOTES).tolist()
    except ValueError as error:
        raise NonFiniteError(f"image {block.indices[row]}: {error}; check the checkpoint") from error
    return votes


def _rival(votes: Sequence[int], label: int, settings: SmoothAttackSettings) -> int | None:
    """Return the class that beats the label with confidence, None if none does."""
    count, rival = max((count, -name) for name, count in enumerate(votes) if name != label)
    return -rival if leads(count, votes[label], settings.alpha) else None


def majorities(network: nn.Module, block: Block, settings: SmoothAttackSettings) -> list[int]:
    """Return for each point of a block the class that beats the label at it, as when it was found; else the label."""
    found = []
    for row, label in enumerate(block.labels.tolist()):
        rival = _rival(_votes(network, block, block.images[row], row, SMOOTH_PGD, settings), label, settings)
        found.append(label if rival is None else rival)
    return found


def leads(rival: int, label: int, alpha: float) -> bool:
    """Return whether the votes of another class beat those of the label with confidence 1 - alpha."""
    from hydrabench.smoothing import prediction_p_value

    return rival > label and prediction_p_value(rival, label) <= alpha


def _metrics(lines: Sequence[Line], _settings: Any) -> dict[str, Metric]:
    return {
        "smoothed_accuracy": Metric(tuple(map(is_correct, lines)), label="without attack"),
        "smoothed_robust_accuracy": Metric(tuple(bool(line["robust"]) for line in lines)),
    }


SMOOTHED_ATTACK = Evaluator(
    settings=SmoothAttackSettings,
    evaluate=evaluate_smooth_attack,
    points=smooth_attack_points,
    classes=majorities,
    record=SmoothAttackRecord,
    metrics=_metrics,
    claims="smoothed-upper",
    command="attack",
    heading="smooth PGD",
    meaning="no majority vote of fresh noise shows another class at the end of PGD on the smoothed classifier",
    passes=lambda settings, _sizes: INPUT_GRADIENT * settings.steps * settings.copies + 2 * settings.draws,
    piece=short_pgd,
    options=(
        EPSILON,
        Option("sigma", "Noise of the smoothed classifier.", default="0.25"),
        Option("steps", "Steps of the attack.", "int", default="20"),
        Option("alpha", "Probability that a break is none.", "float", default="0.001"),
        SEED,
        KEEP,
    ),
)
