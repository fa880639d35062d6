"""Initial weights under which interval bounds keep their size from layer to layer.

From the usual initial weights, which keep the variance of single values, every convolution makes boxes about ten times
as wide; after thirty of them the certified loss is astronomical and nothing is learned.
Source: Shi, Wang, Zhang, Yi and Hsieh (2021), arXiv:2103.17268, section 3.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydrabench.bounds.program.convert import batch_scale, reader
from hydrabench.bounds.program.linear import Add
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.program import program_of
from hydrabench.bounds.program.tracing import Step


@torch.no_grad()
def keep_widths(network: nn.Module, x: Tensor, generator: torch.Generator) -> None:
    """Give a network, in place, initial weights under which boxes keep their mean width.

    A weight of a layer with n inputs is drawn from N(0, 2 pi / n^2): the absolute weights of a row then add up to 2 on
    average, and a ReLU halves widths. Where a value adds m of these widths up, as those behind residual connections do,
    the layers that take it divide their weights by m. Biases are zero.

    Batch norm would divide whatever comes in by its standard deviation, and so undo this; it starts as the identity on
    `x`: its weight is the standard deviation, its bias the mean. Running statistics stay as they are.

    Args:
        network: made of the layers in `program.convert.LAYERS`, without masks.
        x: images, (B, C, H, W), in [0, 1], on the network's device; only batch norm looks at them.
        generator: on the CPU; gives the weights, layer by layer in the order in which they are applied.
    Raises: UnsupportedLayerError for a layer without a rule.
    Source: arXiv:2103.17268, equations 4 to 6, and the authors' code, which halves weights behind residual connections
        however many follow one another. The start of batch norm is ours.
    """
    values, widths = [x], [1.0]
    for step in program_of(network).steps:
        inputs = [values[number] for number in step.inputs]
        widths.append(_width(step, [widths[number] for number in step.inputs]))
        _fill(step, inputs[0], widths[step.inputs[0]], generator)
        values.append(_operation(step, inputs[0]).apply(*inputs))


def _width(step: Step, widths: list[float]) -> float:
    """Mean width of a step's result, in units of the input's, a ReLU and the layer behind it taken together."""
    if isinstance(step.source, nn.Conv2d | nn.Linear):
        return 1.0
    return sum(widths) if isinstance(step.source, Add) else widths[0]


def _fill(step: Step, value: Tensor, width: float, generator: torch.Generator) -> None:
    """Set the parameters of one step, whose input on the batch is `value`."""
    layer = step.source
    if isinstance(layer, nn.Conv2d | nn.Linear):
        drawn = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.copy_(drawn * (sqrt(2 * pi) / (layer.weight[0].numel() * width)))
        if layer.bias is not None:
            layer.bias.zero_()
    elif isinstance(layer, _BatchNorm) and layer.weight is not None:
        var, mean = torch.var_mean(value, [axis for axis in range(value.ndim) if axis != 1], correction=0)
        layer.weight.copy_((var + layer.eps).sqrt())
        layer.bias.copy_(mean)


def _operation(step: Step, value: Tensor) -> Operation:
    """Return what a step computes on the batch; batch norm as in training, with the statistics of `value`."""
    if isinstance(step.source, Operation):
        return step.source
    return batch_scale(step.source, value) if isinstance(step.source, _BatchNorm) else reader(step.source)(step.source)
