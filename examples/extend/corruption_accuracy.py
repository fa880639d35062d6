"""Accuracy on images of low contrast, in five severities, as an evaluator.

hydrabench attack --plugin corruption_accuracy.py --ckpt REF --attack contrast --set severity=3

Source: Hendrycks and Dietterich (2019), arXiv:1903.12261; the factors are those of "contrast" in ImageNet-C.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal

import torch
from pydantic import Field

from hydrabench.evaluators import EVALUATORS, EvaluationSettings, Evaluator, Metric
from hydrabench.evaluators.clean import clean_logits
from hydrabench.evaluators.description import clean_metric
from hydrabench.ledger import Record

FACTORS = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of the contrast, by severity


class ContrastSettings(EvaluationSettings):
    """An `evaluate:` entry of a recipe, or what `--set` says. Another severity is another protocol."""

    kind: Literal["contrast"] = "contrast"
    severity: int = Field(1, ge=1, le=len(FACTORS))
    protocol = property(lambda self: f"contrast-{self.severity}@1")


@dataclass(frozen=True)
class ContrastRecord(Record):
    """corrupted_prediction: the class on the image of low contrast. exact: what `hydrabench verify` compares."""

    exact: ClassVar[tuple[str, ...]] = ("prediction", "corrupted_prediction")
    corrupted_prediction: int


def evaluate_contrast(network, block, settings):
    """Move every pixel towards the mean of its channel, and classify."""
    started, mean = perf_counter(), block.images.mean((2, 3), keepdim=True)
    corrupted = mean + FACTORS[settings.severity - 1] * (block.images - mean)
    with torch.no_grad():
        columns = block.labels, clean_logits(network, block).argmax(1), network(corrupted).argmax(1)
    rows = zip(block.indices, block.shas, *(column.tolist() for column in columns), strict=True)
    seconds = (perf_counter() - started) / len(block.indices)
    return [ContrastRecord(index, sha, label, clean, seconds, low) for index, sha, label, clean, low in rows]


def metrics(lines, _settings):
    """Accuracy on the images as they are, and on the corrupted ones."""
    right = tuple(line["corrupted_prediction"] == line["label"] for line in lines)
    return {"clean_accuracy": clean_metric(lines), "corruption_accuracy": Metric(right)}


EVALUATORS["contrast"] = Evaluator(
    settings=ContrastSettings,
    evaluate=evaluate_contrast,
    record=ContrastRecord,
    metrics=metrics,
    claims="clean",
    command="attack",
    heading=lambda settings: f"contrast severity {settings.severity}",
    meaning="accuracy on images whose contrast is lowered (Hendrycks and Dietterich 2019)",
    passes=lambda _settings, _sizes: 2,
)
