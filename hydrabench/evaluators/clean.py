"""Accuracy on the unperturbed images, and the forward pass that every evaluator starts with."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from hydrabench.errors import NonFiniteError
from hydrabench.evaluators.description import EvaluationSettings, Evaluator, clean_metric
from hydrabench.ledger import AttackRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hydrabench.data.images import Block


class CleanSettings(EvaluationSettings):
    """Accuracy on the unperturbed images."""

    kind: Literal["clean"] = "clean"

    @property
    def protocol(self) -> str:
        """The protocol id."""
        return "clean@1"


def evaluate_clean(network: nn.Module, block: Block, settings: CleanSettings) -> list[AttackRecord]:  # noqa: ARG001
    """Classify the images as they are.

    A wrong image is "broken" by "clean" at step 0, so that `robust` means the same under every
    attack, this empty one included.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    """
    from hydrabench.attacks import margin

    started = perf_counter()
    logits = clean_logits(network, block)
    margins = margin(logits, block.labels).tolist()
    return attack_records(block, logits, clean_breaks(logits, block), margins, started=started)


# What broke an image, after how many steps (None: it does not tell), and in which restart, if it tells.
Break = tuple[str, int | None] | tuple[str, int | None, int]


def clean_breaks(logits: Tensor, block: Block) -> list[Break | None]:
    """("clean", 0) for each image that is misclassified as it is, None for the others."""
    right = (logits.argmax(1) == block.labels).tolist()
    return [None if image_is_right else ("clean", 0) for image_is_right in right]


def attack_records(
    block: Block, logits: Tensor, breaks: Sequence[Break | None], margins: Sequence[float | None], *, started: float
) -> list[AttackRecord]:
    """Write down the verdicts of one block.

    Args:
        logits: of the clean images, (B, K). breaks: what broke each image, None for the robust ones.
        margins: as `AttackRecord.margin`. started: `perf_counter()` when the block was begun.
    """
    labels, predictions = block.labels.tolist(), logits.argmax(1).tolist()
    seconds = (perf_counter() - started) / len(block.indices)
    return [
        AttackRecord(
            index=index,
            input_sha=block.shas[row],
            label=labels[row],
            prediction=predictions[row],
            seconds=seconds,
            robust=broken is None,
            broken_by=broken[0] if broken else None,
            step=broken[1] if broken else None,
            margin=margins[row],
            restart=broken[2] if broken and len(broken) == 3 else None,
        )
        for row, (index, broken) in enumerate(zip(block.indices, breaks, strict=True))
    ]


def clean_logits(network: nn.Module, block: Block) -> Tensor:
    """Logits of a block's unperturbed images, (B, K), all finite.

    Raises: ValueError as `require_eval_mode`; NonFiniteError as `require_finite`.
    """
    import torch

    require_eval_mode(network)
    with torch.no_grad():
        logits: Tensor = network(block.images)
    require_finite(logits, block.indices, "a logit of the clean image")
    return logits


def require_eval_mode(network: nn.Module) -> None:
    """Raise in train mode, where batch statistics make a verdict depend on the rest of the batch.

    Raises: ValueError if any module of the network is in train mode.
    """
    if any(module.training for module in network.modules()):
        raise ValueError("an evaluator needs every module in eval mode; call network.eval() first")


def require_finite(values: Tensor, indices: Sequence[int], what: str) -> None:
    """Raise if a value is NaN or infinite, which must never become a verdict.

    Args:
        values: (B,) or (B, K). indices: data-set index of each row. what: one value, with its article.
    Raises: NonFiniteError naming the first such image.
    """
    import torch

    finite = torch.isfinite(values).reshape(len(indices), -1).all(1)
    if not finite.all():
        index = indices[int((~finite).nonzero()[0, 0])]
        raise NonFiniteError(
            f"image {index}: {what} is NaN or infinite; check the checkpoint, or evaluate with --precision float64"
        )


CLEAN = Evaluator(
    settings=CleanSettings,
    evaluate=evaluate_clean,
    record=AttackRecord,
    metrics=lambda lines, _settings: {"clean_accuracy": clean_metric(lines)},
    claims="clean",
    command="attack",
    heading="clean",
    meaning="accuracy on the unperturbed images",
    passes=lambda _settings, _sizes: 1,
)
