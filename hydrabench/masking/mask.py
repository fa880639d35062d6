"""Masks as parametrizations of ordinary layers: attach, switch phase, share within a step, bake in.

A masked layer is a Conv2d or Linear whose `weight` is `weight * mask` of a stored weight. Models know
nothing about it. In the prune phase the mask is selected anew from the scores; in the other phases it
is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from hydrabench.masking.density import (
    Scope,
    kept_counts,
    prunable_layers,
    total_kept,
    used_modules,
    used_parameters,
)
from hydrabench.masking.rates import INITIAL_DENSITY, KeepRate, counts_of, counts_within, excess
from hydrabench.masking.scores import scaled_scores, share_budget, top_k_mask

Phase = Literal["train", "prune", "finetune"]


class ScoreMask(nn.Module):
    """Keeps the `kept` weights with the largest |scores| and zeroes the others.

    `scores` has the shape of the weight. While `selecting`, every call selects anew and gradients
    reach the scores; otherwise the mask of the last `freeze` is used. Under a shared `budget`, `kept`
    follows the scores of all layers, or their learned rates, whenever a mask is selected.
    """

    mask: Tensor

    def __init__(self, scores: Tensor, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.budget: SharedBudget | None = None
        self.rate: KeepRate | None = None
        self.scores = nn.Parameter(scores.detach().clone())
        self.register_buffer("mask", top_k_mask(self.scores.detach(), kept), persistent=False)
        self.selecting = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight."""
        return weight * (self._selected(self.scores) if self.selecting else self.mask)

    def select(self) -> None:
        """Follow the scores from now on."""
        self.selecting = True

    def freeze(self) -> None:
        """Keep the mask that the scores select now. What is kept is a number from here on: a learned rate is gone."""
        self.selecting = False
        with torch.no_grad():
            self.mask = self._selected(self.scores.detach())

    def restore(self, mask: Tensor) -> None:
        """Take a mask that was stored, 0/1 or boolean, the shape of the weight, instead of selecting one."""
        self.selecting = False
        self.mask = mask.to(self.mask)

    def _selected(self, scores: Tensor) -> Tensor:
        if self.budget is not None:
            self.budget.distribute()
        return top_k_mask(scores, self.kept, self.rate() if self.rate is not None else None)


class SharedBudget:
    """One number of weights that several masks keep together: those with the largest |scores| of all.

    masks: the masks that share it, in the order of the layers.
    kept: weights they keep together.
    """

    def __init__(self, masks: list[ScoreMask], kept: int) -> None:
        self.masks = masks
        self.kept = kept
        for mask in masks:
            mask.budget = self
        self._holding = self._done = False

    def distribute(self) -> None:
        """Set `kept` of every mask from the scores as they are now; inside `hold` only the first time."""
        if self._done:
            return
        for mask, kept in zip(self.masks, self._counts(), strict=True):
            mask.kept = kept
        self._done = self._holding

    def _counts(self) -> list[int]:
        return share_budget([mask.scores for mask in self.masks], self.kept)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Distribute at most once inside the block, in which the scores must stay as they are."""
        before = self._holding, self._done
        self._holding, self._done = True, False
        try:
            yield
        finally:
            self._holding, self._done = before


class LearnedBudget(SharedBudget):
    """A budget that the layers share by keep rates that are learned with the scores (HARP).

    In train mode every layer keeps what its rate says, and `excess` is what the loss must push to 0. In eval mode,
    and once masks are frozen, the rates are shifted together so that the budget holds exactly: validation
    and what is written see a network of the density asked for, in every epoch. The original leaves that to the
    penalty, and disregards the epochs before it holds.
    """

    def __init__(self, masks: list[ScoreMask], kept: int, density: float, initial_density: float) -> None:
        super().__init__(masks, kept)
        for mask in masks:
            mask.rate = KeepRate(mask.scores.numel(), density, max(density, initial_density))

    def excess(self) -> Tensor:
        """Weights kept over the budget, less 1, at least 0: a scalar with a gradient for the rates."""
        return excess(self.rates(), self.kept)

    def rates(self) -> list[KeepRate]:
        """Return the rates of the layers, in their order."""
        return [mask.rate for mask in self.masks if mask.rate is not None]

    def _counts(self) -> list[int]:
        training = all(mask.training and mask.selecting for mask in self.masks)
        return counts_of(self.rates()) if training else counts_within(self.rates(), self.kept)


def score_masks(network: nn.Module) -> dict[str, ScoreMask]:
    """The masks of a network, by the name of the layer they sit on."""
    return {
        name: mask
        for name, layer in prunable_layers(network).items()
        if parametrize.is_parametrized(layer, "weight")
        for mask in layer.parametrizations.weight  # type: ignore[union-attr]
        if isinstance(mask, ScoreMask)
    }


def attach_masks(
    network: nn.Module,
    density: float | Mapping[str, float],
    *,
    scope: Scope = "layer",
    kept: Mapping[str, int] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    initial_density: float = INITIAL_DENSITY,
) -> None:
    """Put a mask on every Conv2d and Linear in use.

    Args:
        network: changed in place; it must carry no masks yet.
        density: fraction of weights kept in every layer, in (0, 1], or one for each layer by its name; with
            the scope "global", the fraction of all weights together.
        kept: number of weights each layer keeps, by its name, instead of what `density` says.
        scores: by layer; None: scaled scores, with which every layer keeps its largest weights at first.
        initial_density: with the scope "learned", what every layer keeps at first; `density` if that is more.
    Raises: ConfigError if the budget is out of range or does not fit the layers.
    """
    layers = prunable_layers(network)
    initial = {name: scaled_scores(layer) for name, layer in layers.items()} if scores is None else scores
    total = None if scope == "layer" or kept is not None else total_kept(network, _single(density))
    if total is not None and scope == "global":
        counts = dict(zip(layers, share_budget([initial[name] for name in layers], total), strict=True))
    else:
        counts = kept_counts(network, density, kept)
    masks = {name: ScoreMask(initial[name], counts[name]) for name in layers}
    if total is not None and scope == "global":
        SharedBudget(list(masks.values()), total)
    elif total is not None:
        LearnedBudget(list(masks.values()), total, _single(density), initial_density)
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", masks[name])
        layer.train(layer.training)  # the new modules start in train mode, whatever the network is in


def _single(density: float | Mapping[str, float]) -> float:
    if isinstance(density, Mapping):
        raise ValueError("a shared budget is one density")
    return density


def learned_budget(network: nn.Module) -> LearnedBudget | None:
    """The budget that a network's layers share by learned rates, if they do."""
    budgets = {mask.budget for mask in score_masks(network).values()}
    return next((budget for budget in budgets if isinstance(budget, LearnedBudget)), None)


def freeze_masks(network: nn.Module) -> None:
    """Keep the masks that the scores select now; layers whose rates are learned keep a fixed number from here on."""
    masks = score_masks(network)
    with _held_budgets(network):
        for mask in masks.values():
            mask.freeze()
    for mask in masks.values():
        if mask.rate is not None:
            mask.rate = mask.budget = None


def set_phase(network: nn.Module, phase: Phase, *, freeze_batch_norm: bool = False) -> None:
    """Decide what is trained: the network in `train` and `finetune`, the scores in `prune`.

    In `prune`, convolution and linear weights and biases are frozen, scores are trained, and so are
    batch-norm weights and biases unless `freeze_batch_norm`. In the other phases everything but the
    scores is trained, and the masks are constant.
    Parameters that no forward pass uses (see `used_modules`) stay as they are: not trained.
    Source: HYDRA's code, which freezes the same parameters.
    """
    pruning = phase == "prune"
    network.requires_grad_(False)
    for parameter in used_parameters(network):
        parameter.requires_grad_(not pruning)
    for _, module in used_modules(network):
        if isinstance(module, _BatchNorm) and pruning:
            for parameter in module.parameters():
                parameter.requires_grad_(not freeze_batch_norm)
    for mask in score_masks(network).values():
        for parameter in mask.parameters():
            parameter.requires_grad_(pruning)
        if pruning:
            mask.select()
    if not pruning and any(mask.selecting for mask in score_masks(network).values()):
        freeze_masks(network)


@contextmanager
def _held_budgets(network: nn.Module) -> Iterator[None]:
    """Distribute every shared budget at most once in the block."""
    budgets = {mask.budget for mask in score_masks(network).values() if mask.budget is not None}
    with ExitStack() as stack:
        for budget in budgets:
            stack.enter_context(budget.hold())
        yield


@contextmanager
def shared_masks(network: nn.Module) -> Iterator[None]:
    """Select every mask and compute every effective weight once and use it for all forward passes inside the block.

    Enter it anew for each optimizer step: the weights inside do not follow an update. They are computed
    here, with gradients enabled: if the first forward pass ran under `no_grad`, the loss would have no gradient with
    respect to the scores.
    """
    masked = [layer for layer in prunable_layers(network).values() if parametrize.is_parametrized(layer, "weight")]
    with parametrize.cached():
        with torch.enable_grad(), _held_budgets(network):
            for layer in masked:
                _ = layer.weight
        yield


def bake_masks(network: nn.Module) -> None:
    """Replace every masked weight by its effective value, in place; plain layers remain."""
    for layer in prunable_layers(network).values():
        if parametrize.is_parametrized(layer):
            make_plain(layer)


def make_plain(layer: nn.Module) -> None:
    """Turn a parametrized layer into a plain one whose parameters have the values that apply now.

    torch's `remove_parametrizations` also takes the property `weight` off the layer's class, which a
    deep copy shares with its original: baking the one would break the other.
    """
    applied = {name: getattr(layer, name).detach() for name in layer.parametrizations}  # type: ignore[union-attr]
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    for name, value in applied.items():
        layer.register_parameter(name, nn.Parameter(value))
