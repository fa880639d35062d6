"""alpha-CROWN by auto_LiRPA."""

from __future__ import annotations

import inspect
from functools import cache, partial
from math import prod
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydrabench.bounds.alpha import DECAY, Search
from hydrabench.bounds.lirpa.check import TESTED, require_improvement
from hydrabench.bounds.lirpa.library import release
from hydrabench.bounds.lirpa.margins import require_auto_lirpa
from hydrabench.bounds.lirpa.modules import bounded_module, lower_bounds, margin_rows, perturbed
from hydrabench.bounds.lirpa.shims import slopes_can_leave_their_ends
from hydrabench.errors import HydrabenchError

MOST = 0.85  # of a layer's neurons: somewhat less than the share above which auto_LiRPA keeps all slopes
LAYER_BYTES = 1 << 30  # bytes of one layer's linear functions; a search holds several times as much


def lirpa_alpha_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, search: Search) -> Tensor:
    """Like `lirpa_margins`, by alpha-CROWN.

    Of each difference of logits the best iterate is kept. An image is done when all of its margins are positive, and
    stays as it is then. "all" slopes are optimised together, for the margins. Without auto_LiRPA's patience, which
    would stop all images of a batch together.

    Raises: what `lirpa_margins` raises.
    Source: Xu et al. (2021), arXiv:2011.13824, section 3.1.
    """
    require_auto_lirpa()
    _require_improvement(search.slopes)
    return _margins(network, x, y, epsilon, search)


@cache
def _require_improvement(slopes: Literal["output", "all"]) -> None:
    require_improvement(partial(_margins, search=Search(slopes, iterations=4)), release())


def _margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, search: Search) -> Tensor:
    if not len(y):
        return x.new_empty(0)
    one, parts = bounded_module(network, x[:1]), []
    size = _images_at_once(one, x.element_size())
    for first in range(0, len(y), size):
        started, rows = perf_counter(), slice(first, first + size)
        bounded = bounded_module(network, x[rows], like=one)  # a search leaves in it where the next would start
        deadline = None if search.time_limit is None else started + search.time_limit * len(y[rows])
        parts.append(_searched(bounded, perturbed(x[rows], epsilon), y[rows], search, deadline))
    return torch.cat(parts)


def _images_at_once(bounded: Any, number: int) -> int:
    """Images whose linear functions of the largest layer, one for each neuron, fit into `LAYER_BYTES`; at least 1.

    number: bytes of one number.
    """
    layers = [node.inputs[0].output_shape for node in bounded.optimizable_activations]
    neurons = max((prod(shape[1:]) for shape in layers), default=1)
    return max(1, LAYER_BYTES // (number * neurons**2))


def _searched(bounded: Any, ball: Tensor, y: Tensor, search: Search, deadline: float | None) -> Tensor:
    rows = margin_rows(y, bounded.final_shape[1], ball.dtype)
    with torch.no_grad():
        best = _Best(lower_bounds(bounded, ball, rows, "CROWN"), deadline)
    neurons = _bounds_of_neurons(bounded)
    if best.stop().all() or not neurons:
        return best.lower.min(1).values
    _keep_all_slopes_of_open_layers(bounded)
    bounded.set_bound_opts({"optimize_bound_args": _options(bounded, search, best)})
    given = {_name_of_intermediate_bounds(bounded): neurons} if search.slopes == "output" else {}
    with torch.enable_grad(), slopes_can_leave_their_ends():
        lower_bounds(bounded, ball, rows, "CROWN-Optimized", **given)
    return best.lower.min(1).values


class _Best:
    """The best lower bounds so far, (B, K - 1); auto_LiRPA calls it after every iteration, to ask which to stop."""

    def __init__(self, lower: Tensor, deadline: float | None) -> None:
        self.lower = lower
        self.deadline = deadline

    def __call__(self, lower: Tensor) -> Tensor:
        """Take the bounds of an iterate; return which images are done, (B, 1)."""
        better = torch.maximum(self.lower, lower.detach())  # NaN stays NaN, which an evaluator refuses
        self.lower = torch.where(self._proved(), self.lower, better)
        return self.stop()

    def stop(self) -> Tensor:
        """The images that are proved, or all when the time is up; (B, 1)."""
        late = self.deadline is not None and perf_counter() >= self.deadline
        return self._proved() | late

    def _proved(self) -> Tensor:
        return (self.lower > 0).all(1, keepdim=True)


def _bounds_of_neurons(bounded: Any) -> dict[str, list[Tensor]]:
    """Lower and upper bounds of what goes into the activations, after a CROWN pass, by auto_LiRPA's names."""
    inputs = [node.inputs[0] for node in bounded.optimizable_activations if node.perturbed]
    inputs = [value for value in inputs if getattr(value, "lower", None) is not None]  # what the logits depend on
    return {value.name: [value.lower.detach(), value.upper.detach()] for value in inputs}


def _keep_all_slopes_of_open_layers(bounded: Any) -> None:
    """Have slopes for all neurons of a layer where the batch leaves most of them unstable.

    Where it is more than nine in ten, release 0.3 makes them all but takes them for those of the unstable ones only.
    """
    for node in bounded.optimizable_activations:
        if node.perturbed and getattr(node.inputs[0], "lower", None) is not None:
            unstable = (node.inputs[0].lower < 0) & (node.inputs[0].upper > 0)
            node.use_sparse_features_alpha = float(unstable.any(0).float().mean()) < MOST


def _options(bounded: Any, search: Search, best: _Best) -> dict[str, Any]:
    known = bounded.bound_opts["optimize_bound_args"]
    fix = "fix_interm_bounds" if "fix_interm_bounds" in known else "fix_intermediate_layer_bounds"
    options = {
        "iteration": search.iterations,
        "lr_alpha": search.learning_rate,
        "lr_decay": DECAY,
        "early_stop_patience": search.iterations,
        "stop_criterion_func": best,
        "use_shared_alpha": search.slopes == "output",  # of passes that are then not run; without, they need memory
        fix: True,
    }
    if unknown := options.keys() - known.keys():  # a renamed one would be ignored
        raise HydrabenchError(f"auto_LiRPA {release()} has no options {', '.join(sorted(unknown))}; {TESTED}")
    return options


def _name_of_intermediate_bounds(bounded: Any) -> str:
    """Return the argument of `compute_bounds` for known bounds of neurons; it was renamed after 0.3."""
    parameters = inspect.signature(bounded.compute_bounds).parameters
    return "interm_bounds" if "interm_bounds" in parameters else "intermediate_layer_bounds"
