"""The penalty on learned keep rates (HARP): it grows epoch by epoch until the layers together hold the budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hydrabench.masking import learned_budget
from hydrabench.recipes import PhaseRecipe, PruneRecipe

WEIGHT = 0.01  # gamma of the first epoch
COLUMN = "budget_excess"  # of metrics.csv: how many weights the rates keep over the budget, relative to it


class BudgetPenalty:
    """gamma · max(kept / budget - 1, 0), added to the loss of a phase whose keep rates are learned; else nothing.

    In epoch e, counted from 1, gamma is e times `prune.budget_weight`. It stays as it is after the first epoch at whose
    end the excess, rounded to four digits, is 0.
    Source: arXiv:2412.14714.
    """

    def __init__(self, network: nn.Module, recipe: PhaseRecipe) -> None:
        self.budget = learned_budget(network)
        given = recipe.budget_weight if isinstance(recipe, PruneRecipe) else None
        self.weight = WEIGHT if given is None else given

    def gamma(self, rows: Sequence[dict[str, float]]) -> float:
        """Return gamma after the epochs whose `rows` of metrics.csv are given."""
        held = next((number for number, row in enumerate(rows) if round(row[COLUMN], 4) == 0), len(rows))
        return self.weight * (held + 1)

    def add_gradients(self, rows: Sequence[dict[str, float]], scale: float) -> None:
        """Add the penalty's gradients to those of the rates, `scale` times, as those of the loss are."""
        if self.budget is None:
            return
        rates = [rate.logit for rate in self.budget.rates()]
        penalty = self.gamma(rows) * scale * self.budget.excess()
        for rate, gradient in zip(rates, torch.autograd.grad(penalty, rates), strict=True):
            rate.grad = gradient if rate.grad is None else rate.grad + gradient

    def row(self) -> dict[str, float]:
        """Return what metrics.csv says of the rates after an epoch."""
        return {} if self.budget is None else {COLUMN: float(self.budget.excess().detach())}
