"""The optimizer, its learning rate, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.masking import learned_budget
from hydrabench.objectives import SCHEDULES
from hydrabench.recipes import PhaseRecipe, PruneRecipe

FACTOR = "factor"  # of a group of parameters: its learning rate over the recipe's
AVERAGE_START = 10  # at first, an average spans about the last ninth of the steps so far


def build_optimizer(network: nn.Module, recipe: PhaseRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that are trained; weight decay is an L2 term of the gradient.

    Learned keep rates are a group of their own if the recipe gives them a learning rate of their own.

    Source: HYDRA's code, whose optimizers these are.
    """
    parameters = _groups(network, recipe)
    lr, weight_decay = recipe.lr, recipe.weight_decay
    match recipe.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=lr, momentum=recipe.momentum, weight_decay=weight_decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=lr, momentum=recipe.momentum, weight_decay=weight_decay, nesterov=recipe.nesterov
            )


def _groups(network: nn.Module, recipe: PhaseRecipe) -> list[dict[str, Any]]:
    """Return groups of what is trained: keep rates may have a learning rate of their own."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    budget = learned_budget(network)
    if budget is None or not isinstance(recipe, PruneRecipe) or recipe.rate_lr is None:
        return [{"params": trained}]
    rates = [rate.logit for rate in budget.rates()]
    others = [parameter for parameter in trained if all(parameter is not rate for rate in rates)]
    return [{"params": others}, {"params": rates, FACTOR: recipe.rate_lr / recipe.lr}]


def set_learning_rate(
    optimizer: torch.optim.Optimizer, recipe: PhaseRecipe, step: int, *, steps_per_epoch: int
) -> float:
    """Give the optimizer the learning rate of a 0-based step, and return it."""
    factor = SCHEDULES[recipe.schedule](
        step,
        total=recipe.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=recipe.warmup_epochs * steps_per_epoch,
        milestones=recipe.milestones,
    )
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * factor * group.get(FACTOR, 1.0)
    return recipe.lr * factor


def limit_gradients(network: nn.Module, longest: float) -> None:
    """Scale the gradients of all trained parameters together down to the L2 norm `longest`, if it is larger."""
    nn.utils.clip_grad_norm_([parameter for parameter in network.parameters() if parameter.requires_grad], longest)


class Average:
    """Exponential moving average of a network's weights and batch-norm statistics.

    a <- d · a + (1 - d) · w after every step, where d = min(decay, (1 + n) / (10 + n)) after n updates, so that
    the initial weights lose their influence soon. Integer buffers are copied. A weight that does not change keeps its
    bits.
    Source: Polyak and Juditsky (1992), as exponential averages with TensorFlow's `num_updates`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.updates = 0
        self.tensors = {key: tensor.clone() for key, tensor in network.state_dict().items()}

    def update(self) -> None:
        """Update the average with the current weights."""
        decay = min(self.decay, (1 + self.updates) / (AVERAGE_START + self.updates))
        self.updates += 1
        for key, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[key].lerp_(tensor, 1 - decay)
            else:
                self.tensors[key].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights inside the block."""
        now = self.network.state_dict()
        held = {key: tensor.clone() for key, tensor in now.items()}
        _copy(self.tensors, now)
        try:
            yield
        finally:
            _copy(held, now)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on."""
        return {"updates": self.updates, "tensors": self.tensors}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. Raises: KeyError if it is of another network."""
        self.updates = state["updates"]
        _copy({key: state["tensors"][key] for key in self.tensors}, self.tensors)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(source[key])
