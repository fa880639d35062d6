"""Convolutions of every kind, and the ways back through them.

2-D convolutions have a kernel of their own where torch's generic transpose would apply the operation once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.box import Interval, channels_last, images
from hydrabench.bounds.patches import Pair, Rows, Window
from hydrabench.bounds.program.linear import Weighted, per_channel
from hydrabench.bounds.transposed import by_phases, phases_pay, sorted_pixels


@dataclass(frozen=True, eq=False)
class Convolution(Weighted):
    """2-D cross-correlation with zero padding, the same on both sides of an axis."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def apply(self, x: Tensor) -> Tensor:
        """Convolve images (B, C, H, W)."""
        return F.conv2d(
            images(x, "conv2d"), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def terms(self, _before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """See `Linear`; constants are summed over the positions of an image, then over its channels."""
        return self._terms(0, after[1:].numel() + after[0])

    def constant(self, _like: Sequence[Tensor]) -> Tensor | None:
        """The bias."""
        return None if self.bias is None else per_channel(self.bias, 4)

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """A transposed convolution."""
        rows = channels_last(rows)
        # With a gradient, putting phases together would have to be paid twice.
        if self._by_ordinary_ones(rows) and not torch.is_grad_enabled() and phases_pay(self.weight, self.stride):
            return (by_phases(rows, self.weight, stride=self.stride, padding=self.padding, size=shapes[0][2:]),)
        # Input rows and columns that no window reached get no coefficient unless the output is padded for them.
        axes = zip(rows.shape[2:], self.stride, self.padding, self.dilation, self.weight.shape[2:], strict=True)
        reached = [(out - 1) * step - 2 * pad + apart * (taps - 1) + 1 for out, step, pad, apart, taps in axes]
        found = F.conv_transpose2d(
            rows,
            self.weight,
            stride=self.stride,
            padding=self.padding,
            output_padding=[whole - end for whole, end in zip(shapes[0][2:], reached, strict=True)],
            groups=self.groups,
            dilation=self.dilation,
        )
        return (found,)

    def back_to_box(self, rows: Tensor, box: Interval) -> tuple[Tensor, Interval]:
        """Sort the few pixels instead of the many rows, whose channels are then enough to fill a CPU's vectors."""
        rows = channels_last(rows)
        known = self._by_ordinary_ones(rows)
        found = sorted_pixels(rows, self.weight, box, stride=self.stride, padding=self.padding) if known else None
        return super().back_to_box(rows, box) if found is None else found

    def _by_ordinary_ones(self, rows: Tensor) -> bool:
        """Return whether `transposed` knows the convolution."""
        known = self.groups == 1 and self.dilation == (1, 1)
        return known and rows.device.type == "cpu" and rows.dtype == torch.float32

    def gain(self, rows: Tensor, _shapes: Sequence[torch.Size]) -> Tensor | None:
        """See `Linear`."""
        return None if self.bias is None else rows.sum((2, 3)) @ self.bias

    def window_behind(self, window: Window) -> Window:
        """See `Operation`."""
        return window.behind(self.weight.shape[2:], self.stride, self.padding, self.dilation)

    def back_patches(
        self, rows: Rows, shapes: Sequence[torch.Size], after: torch.Size
    ) -> tuple[tuple[Rows | None, ...], Tensor | None]:
        """Patches grow, until they are as large as the value."""
        if rows.window is None:
            coefficients = channels_last(*self.back(rows.coefficients, shapes))  # phases come with gaps in memory
            return (Rows(coefficients, rows.image, fresh=True),), self.gain(rows.coefficients, shapes)
        rows = rows.masked(after)
        window = self.window_behind(rows.window)  # type: ignore[arg-type]
        coefficients = self._grown(rows.coefficients)
        found = Rows(coefficients, rows.image, window, rows.spot, inside=window.inside(shapes[0][2:]), fresh=True)
        if not torch.is_grad_enabled():
            found = replace(found, coefficients=channels_last(coefficients)).cropped(shapes[0])
        if prod(found.window.size) >= prod(shapes[0][2:]):  # type: ignore[union-attr]
            found = found.whole(shapes[0])
        return (found,), self.gain(rows.coefficients, shapes)

    def _grown(self, windows: Tensor) -> Tensor:
        """Carry coefficients in windows of the output, (R, C, h, w), to the larger windows of the input behind them."""
        if windows.shape[2:] == (1, 1) and self.groups == 1 and self.dilation == (1, 1):
            # A pixel has one product of matrices, several times as fast as a convolution of any layout.
            weight = self.weight.permute(0, 2, 3, 1)
            return (windows.flatten(1) @ weight.flatten(1)).view(-1, *weight.shape[1:]).movedim(-1, 1)
        return F.conv_transpose2d(windows, self.weight, stride=self.stride, groups=self.groups, dilation=self.dilation)

    def mixed_channels(self, *, vectors: bool) -> tuple[Tensor, Tensor | None] | None:  # noqa: ARG002
        """See `Operation`."""
        return (self.weight, self.bias) if self.groups == 1 else None


@dataclass(frozen=True, eq=False)
class OtherConvolution(Weighted):
    """1-D or 3-D cross-correlation, or a transposed convolution of any dimension; torch's own transpose leads back.

    axes: 1, 2 or 3. settings: stride, padding, [output padding and] groups and dilation, in torch's order.
    """

    axes: int
    transposed: bool
    settings: tuple[object, ...]

    @property
    def products(self) -> int:
        """See `Operation`; a transposed convolution has its input channels on the other axis."""
        groups = self.settings[-2] if self.transposed else self.settings[-1]
        assert isinstance(groups, int)
        return len(self.weight) // groups * prod(self.weight.shape[2:]) if self.transposed else super().products

    def apply(self, x: Tensor) -> Tensor:
        """Convolve values (B, C, ...) of as many further axes as `axes`."""
        name = f"conv_transpose{self.axes}d" if self.transposed else f"conv{self.axes}d"
        found: Tensor = CONVOLUTIONS[name](images(x, name, self.axes + 2), self.weight, self.bias, *self.settings)
        return found

    def terms(self, _before: Sequence[torch.Size], after: torch.Size) -> tuple[int, int]:
        """See `Linear`."""
        return self._terms(int(self.transposed), after[1:].numel() + after[0])

    def constant(self, _like: Sequence[Tensor]) -> Tensor | None:
        """The bias."""
        return None if self.bias is None else per_channel(self.bias, self.axes + 2)


CONVOLUTIONS = {
    name: getattr(F, name) for name in ("conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
}
