"""Readers that turn every layer which the bounds know into operations.

A reader turns a layer into an operation with the tensors and settings that it applies now. What has no sound rule, or
might compute something else, is refused. `calls` does the same for functions and methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydrabench.bounds.box import images
from hydrabench.bounds.patches import Pair
from hydrabench.bounds.program.activation_calls import ACTIVATION_LAYERS
from hydrabench.bounds.program.arguments import NoRule
from hydrabench.bounds.program.convolutions import Convolution, OtherConvolution
from hydrabench.bounds.program.linear import Dense, Scale
from hydrabench.bounds.program.operations import Linear, Operation
from hydrabench.bounds.program.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.structure import Flatten, Identity, Pad, Part, Repeat, Reshape, image_axis
from hydrabench.errors import UnsupportedLayerError
from hydrabench.models.normalize import Normalize

# Convolutions and batch norm -------------------------------------------------------------------


def _padding(layer: Any) -> tuple[int, ...]:
    if layer.padding_mode != "zeros":
        raise NoRule(f"pads with padding_mode={layer.padding_mode!r}, only 'zeros' has a rule")
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same" and any(span % 2 for span in spans):
        raise NoRule("pads one side more than the other (padding='same' with an even kernel)")
    return tuple(span // 2 if layer.padding == "same" else 0 for span in spans)


def _convolution(layer: nn.Conv2d) -> Convolution:
    stride, padding, dilation = ((a, b) for a, b in (layer.stride, _padding(layer), layer.dilation))
    return Convolution(layer.weight, layer.bias, stride, padding, dilation, layer.groups)


def _other_convolution(layer: Any) -> OtherConvolution:
    settings = (layer.stride, _padding(layer), layer.dilation, layer.groups)
    return OtherConvolution(layer.weight, layer.bias, len(layer.kernel_size), False, settings)


def _transposed(layer: Any) -> OtherConvolution:
    settings = (layer.stride, _padding(layer), layer.output_padding, layer.groups, layer.dilation)
    return OtherConvolution(layer.weight, layer.bias, len(layer.kernel_size), True, settings)


def _running_scale(layer: _BatchNorm) -> Scale:
    if layer.running_mean is None or layer.running_var is None:
        raise NoRule("keeps no running statistics, so the verdict on an image would depend on the rest of its batch")
    return _affine(layer, layer.running_mean, layer.running_var)


def batch_scale(layer: _BatchNorm, value: Tensor) -> Scale:
    """Batch norm in training mode, with the mean and biased variance of `value` held constant over the box."""
    var, mean = torch.var_mean(value, [axis for axis in range(value.ndim) if axis != 1], correction=0)
    return _affine(layer, mean, var)


def _affine(layer: _BatchNorm, mean: Tensor, var: Tensor) -> Scale:
    scale = (var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    shift = -mean * scale
    if layer.bias is None:
        return Scale(scale, shift)
    shift = shift + layer.bias
    with torch.no_grad():  # what cancelled in the shift counts, too: at most |shift| + 2 |bias|
        return Scale(scale, shift, shift.abs() + 2 * layer.bias.abs())


# Structure -------------------------------------------------------------------------------------


def flatten(start: object, end: object) -> Linear:
    """`torch.flatten` of the axes from `start` to `end`."""
    if (start, end) == (1, -1):
        return Flatten()
    if not isinstance(start, int) or not isinstance(end, int) or (start == 0 and end != 0):
        raise NoRule(f"flattens axes {start} to {end}, only those of an image have a rule")

    def shape(size: torch.Size) -> Sequence[int]:
        first, last = start % len(size), end % len(size)
        if first == 0 and last != 0:
            raise UnsupportedLayerError(
                f"cannot flatten axes {start} to {end}: that mixes the images of a batch; certify it with smoothing"
            )
        return (*size[1:first], -1, *size[last + 1 :]) if last else size[1:]

    return Reshape(shape)


def unflatten(dim: int, sizes: Sequence[int]) -> Reshape:
    """`torch.unflatten` of an axis."""

    def shape(size: torch.Size) -> Sequence[int]:
        at = image_axis(dim, len(size))
        return (*size[1:at], *sizes, *size[at + 1 :])

    return Reshape(shape)


def pixel_shuffle(upscale_factor: int) -> Part:
    """`torch.nn.functional.pixel_shuffle`."""
    return Part(lambda x: nn.functional.pixel_shuffle(images(x, "pixel_shuffle"), upscale_factor))


def pixel_unshuffle(downscale_factor: int) -> Part:
    """`torch.nn.functional.pixel_unshuffle`."""
    r = downscale_factor

    def take(x: Tensor) -> Tensor:  # torch's function gives an empty batch another shape
        *_, height, width = images(x, "pixel_unshuffle").shape
        blocks = x.reshape(*x.shape[:2], height // r, r, width // r, r)
        return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    return Part(take)


def upsample(settings: dict[str, Any]) -> Repeat:
    """`torch.nn.functional.interpolate` with `mode="nearest"`."""
    mode = settings.pop("mode")
    if mode not in ("nearest", "nearest-exact") or settings.pop("align_corners", None) or settings.pop("antialias", 0):
        raise NoRule(f"upsamples with mode={mode!r}, only 'nearest' and 'nearest-exact' have a rule")
    return Repeat((*settings.items(), ("mode", mode)))


def padded(pad: Any, mode: str = "constant", value: float | None = None) -> Pad:
    """`torch.nn.functional.pad` with a constant."""
    if mode != "constant" or not isinstance(pad, tuple | list) or not all(isinstance(size, int) for size in pad):
        raise NoRule(f"pads with mode={mode!r} by {pad}, only constants and whole numbers have a rule")
    return Pad(tuple(pad), value or 0.0)


def dropout(*, training: bool) -> Identity:
    """Dropout, which is nothing in eval mode."""
    if training:
        raise NoRule("is random in training mode; call eval()")
    return Identity()


# Pooling ---------------------------------------------------------------------------------------


def _pair(value: Any) -> Pair:
    values = (value,) if isinstance(value, int) else value
    if not isinstance(values, tuple | list) or not all(isinstance(size, int) for size in values):
        raise NoRule("pools with windows that depend on the image, which have no rule")
    return (values[0], values[-1])


def max_pool(settings: dict[str, Any]) -> MaxPool:
    """`torch.nn.functional.max_pool2d` with these settings."""
    if settings["return_indices"]:
        raise NoRule("pools with return_indices, which has no rule")
    stride = settings["stride"] or settings["kernel_size"]
    pairs = (settings["kernel_size"], stride, settings["padding"], settings["dilation"])
    kernel, stride, padding, dilation = map(_pair, pairs)
    return MaxPool(kernel, stride, padding, dilation, bool(settings["ceil_mode"]))


def average_pool(settings: dict[str, Any]) -> AveragePool:
    """`torch.nn.functional.avg_pool2d` with these settings."""
    if settings["divisor_override"] is not None:
        raise NoRule("pools with divisor_override, which has no rule")
    stride = settings["stride"] or settings["kernel_size"]
    kernel, stride, padding = map(_pair, (settings["kernel_size"], stride, settings["padding"]))
    return AveragePool(kernel, stride, padding, settings["count_include_pad"], bool(settings["ceil_mode"]))


def adaptive_pool(output_size: Any) -> AdaptiveAveragePool:
    """`torch.nn.functional.adaptive_avg_pool2d` to this size."""
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    if not all(axis is None or isinstance(axis, int) for axis in sizes):
        raise NoRule("pools to a size that depends on the image, which has no rule")
    return AdaptiveAveragePool((sizes[0], sizes[-1]))


# The table -------------------------------------------------------------------------------------

LAYERS: dict[type[nn.Module], Callable[[Any], Operation]] = {
    nn.Conv1d: _other_convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _other_convolution,
    nn.ConvTranspose1d: _transposed,
    nn.ConvTranspose2d: _transposed,
    nn.Linear: lambda layer: Dense(layer.weight, layer.bias),
    nn.BatchNorm1d: _running_scale,
    nn.BatchNorm2d: _running_scale,
    nn.ReLU: lambda _layer: Relu(),
    nn.MaxPool2d: lambda layer: max_pool(vars(layer)),
    nn.AvgPool2d: lambda layer: average_pool(vars(layer)),
    nn.AdaptiveAvgPool2d: lambda layer: adaptive_pool(layer.output_size),
    nn.Flatten: lambda layer: flatten(layer.start_dim, layer.end_dim),
    nn.Unflatten: lambda layer: unflatten(layer.dim, layer.unflattened_size),
    nn.ZeroPad2d: lambda layer: padded(layer.padding),
    nn.ConstantPad2d: lambda layer: padded(layer.padding, value=layer.value),
    nn.Upsample: lambda layer: upsample(
        {name: getattr(layer, name) for name in ("size", "scale_factor", "mode", "align_corners")}
    ),
    nn.PixelShuffle: lambda layer: pixel_shuffle(layer.upscale_factor),
    nn.PixelUnshuffle: lambda layer: pixel_unshuffle(layer.downscale_factor),
    nn.Identity: lambda _layer: Identity(),
    nn.Dropout: lambda layer: dropout(training=layer.training),
    nn.Dropout2d: lambda layer: dropout(training=layer.training),
    **ACTIVATION_LAYERS,
    Normalize: lambda layer: Scale(1 / layer.std.flatten(), -(layer.mean / layer.std).flatten()),
}


def reader(layer: nn.Module) -> Callable[[Any], Operation]:
    """The reader for a layer, if it is of a known class and computes what that class does.

    A parametrized layer has a class of its own that inherits `forward`; a subclass or an instance that
    replaces `forward`, or what it is called through, is not what its name says.
    """
    for kind, found in LAYERS.items():
        if isinstance(layer, kind):
            code = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
            own = [name for name in code if getattr(getattr(layer, name), "__func__", None) is not getattr(kind, name)]
            if own or type(layer).__call__ is not nn.Module.__call__:
                raise NoRule(f"is a {kind.__name__} with a {(*own, '__call__')[0].strip('_')} of its own")
            return found
    raise NoRule("has no sound rule")


def may_alias(layer: nn.Module) -> bool:
    """Return whether a known layer may return the value it takes, or a view of it; one with parameters never does."""
    if next(layer.parameters(), None) is not None:
        return False
    try:
        return reader(layer)(layer).aliases
    except NoRule:
        return True
