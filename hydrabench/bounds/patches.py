"""Many linear functions of single values, each of one image, carried from a value back to the input.

A neuron behind a few convolutions sees a small window of every earlier value. Rows of neurons therefore
start as windows, (R, C, h, w), grow at each convolution, and become whole, (R, *value), when a window is as
large as the value or a linear layer is crossed. Only neurons whose bounds are wanted have rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]  # along the last two axes, height and width
CHUNK = {"cpu": 2**20, "cuda": 2**26}  # coefficients that one chunk may have at any one value, of either sign
WITH_GRADIENT = 4  # chunks of a CPU are so many times as long where gradients are kept


@dataclass(frozen=True)
class Window:
    """The window of each row: the row of position (i, j) of `grid` to the block of `size` at stride · (i, j) - padding.

    All hold two numbers, for the vertical and the horizontal axis; `grid` is that of the neurons' own layer. No row is
    of a position before `first` or behind `last`.
    """

    size: Pair
    stride: Pair
    padding: Pair
    grid: Pair
    first: Pair
    last: Pair

    def behind(self, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> Window:
        """The window in the input of a convolution whose output this one lies in."""
        axes = list(zip(self.size, stride, dilation, kernel, strict=True))
        return replace(
            self,
            size=_pair((size - 1) * step + apart * (taps - 1) + 1 for size, step, apart, taps in axes),
            stride=_pair(a * b for a, b in zip(self.stride, stride, strict=True)),
            padding=_pair(a * step + b for a, step, b in zip(self.padding, stride, padding, strict=True)),
        )

    def joined(self, other: Window) -> Window:
        """The smallest window that holds this one and another of the same stride and grid."""
        padding = _pair(map(max, self.padding, other.padding))
        ends = ([size - before for size, before in zip(one.size, one.padding, strict=True)] for one in (self, other))
        size = _pair(before + end for before, end in zip(padding, map(max, *ends), strict=True))
        return replace(self, size=size, padding=padding)

    def inside(self, extent: Sequence[int]) -> bool:
        """Return whether no row's window leaves a value of this height and width."""
        ends = [start + size for start, size in zip(self._starts(self.last), self.size, strict=True)]
        return min(self._starts(self.first)) >= 0 and all(a <= b for a, b in zip(ends, extent, strict=True))

    def cropped(self, extent: Sequence[int]) -> Window:
        """The part that lies inside a value of this height and width for any of the rows; one pixel if none does."""
        size, padding = [], []
        for first, last, old, before, pixels in zip(
            self._starts(self.first), self._starts(self.last), self.size, self.padding, extent, strict=True
        ):
            low, high = max(0, -last), min(old, pixels - first)
            size.append(high - low if high > low else 1)
            padding.append(before - low if high > low else before)
        return replace(self, size=_pair(size), padding=_pair(padding))

    def _starts(self, spot: Pair) -> list[int]:
        return [place * step - before for place, step, before in zip(spot, self.stride, self.padding, strict=True)]

    def within(self, other: Window) -> tuple[slice, slice]:
        """Return the rows and columns of a larger window, of the same stride and grid, that this one takes."""
        starts = [new - old for new, old in zip(other.padding, self.padding, strict=True)]
        down, right = (slice(start, start + size) for start, size in zip(starts, self.size, strict=True))
        return down, right

    def blocks(self, value: Tensor, image: Tensor, spot: Tensor) -> Tensor:
        """Return what the windows of some positions show of a value (B, C, H, W), 0 outside it: (G, C, h, w).

        Args: image, spot: of each position, (G,). A value of one image is the same for all.
        """
        margins = [
            (before, (count - 1) * step + size - before - extent)
            for before, count, step, size, extent in zip(
                self.padding, self.grid, self.stride, self.size, value.shape[2:], strict=True
            )
        ]
        # Channels last, as the coefficients are.
        padded = F.pad(value, (*margins[1], *margins[0])).movedim(1, -1)
        views = padded.unfold(1, self.size[0], self.stride[0]).unfold(2, self.size[1], self.stride[1]).movedim(3, -1)
        down, right = spot // self.grid[1], spot % self.grid[1]
        return (views[0, down, right] if len(value) == 1 else views[image, down, right]).movedim(-1, 1)

    def places(self, extent: Sequence[int], spot: Tensor) -> tuple[Tensor, Tensor]:
        """Return where in the windows of some positions the pixels of a value of this height and width lie.

        Returns: numbers along the flattened windows, (G, H · W), int32, and whether the pixel is in the window at all.
        """
        place = spot.new_zeros(len(spot), 1, 1, dtype=torch.int32)
        known = torch.ones_like(place, dtype=torch.bool)
        for axis, along in enumerate((spot // self.grid[1], spot % self.grid[1])):
            start = (along * self.stride[axis] - self.padding[axis]).to(place.dtype).unsqueeze(1)
            taken = torch.arange(extent[axis], dtype=place.dtype, device=spot.device) - start
            taken = taken.unsqueeze(2 - axis)
            place = place * self.size[axis] + taken.clamp(0, self.size[axis] - 1)
            known = known & (taken >= 0) & (taken < self.size[axis])
        return place.flatten(1), known.flatten(1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Coefficients of R linear functions: (R, *shape of the value), or (R, C, h, w) in a window.

    They come in groups of one size that see the same of every value: R = S · G, and row s · G + g is one of group g.
    image: which image each group is about, (G,), int64. window, spot: for rows in a window, which one, and the
    position of each group in its grid, (G,). inside: whether coefficients outside the value are known to be 0; the
    value is 0 there, but what it is computed from would not be. fresh: whether nobody else reads the coefficients.
    """

    coefficients: Tensor
    image: Tensor
    window: Window | None = None
    spot: Tensor | None = None
    inside: bool = True
    fresh: bool = False

    @property
    def spent(self) -> bool:
        """Tell if the coefficients may be written over."""
        return self.fresh and not torch.is_grad_enabled()

    def seen(self, value: Tensor) -> Tensor:
        """Return what rows of each group multiply of a value (B, ...): (G, ...), or (1, ...) if all see the same."""
        if self.window is None and value.ndim == 4 and len(value) > 1:  # channels last, as the coefficients are
            return value.movedim(1, -1).contiguous().index_select(0, self.image).movedim(-1, 1)
        if self.window is None:
            return value if len(value) == 1 else value.index_select(0, self.image)
        assert self.spot is not None
        return self.window.blocks(value, self.image, self.spot)

    def times(self, factor: Tensor) -> Rows:
        """The rows of the value that these rows' value is `factor` (B, ...) times."""
        return self.changed(factor)

    def changed(self, factor: Tensor, plus: tuple[Tensor, Tensor] | None = None) -> Rows:
        """Rows with coefficients · factor + plus[0] · plus[1], factors (B, ...), 0 outside the value."""
        seen = self.seen(factor)
        coefficients = _by_rows(self.coefficients, seen)
        found = coefficients.mul_(seen) if self.spent else coefficients * seen
        if plus is not None:
            seen = self.seen(plus[1])  # the first factor's is freed here
            found = found.addcmul_(_by_rows(plus[0], seen), seen)
        return replace(self, coefficients=found.view_as(self.coefficients), inside=True, fresh=True)

    def masked(self, shape: torch.Size) -> Rows:
        """The same functions of a value of this shape, (B, ...), with `inside`."""
        if self.inside:
            return self
        return self.times(self.coefficients.new_ones(1, 1, 1, 1).expand(1, *shape[1:]))

    def plus(self, other: Rows, shape: torch.Size) -> Rows:
        """The sums of these functions and others of the same images and neurons, of a value of this shape, (B, ...)."""
        if self.window is None or other.window is None or self.window.stride != other.window.stride:
            one, two = self.whole(shape), other.whole(shape)
            return Rows(one.coefficients + two.coefficients, self.image, fresh=True)
        window = self.window.joined(other.window)
        inside = self.inside and other.inside
        for large, small in ((self, other), (other, self)):
            if large.window == window and large.spent and small.window is not None:
                down, right = small.window.within(window)
                large.coefficients[:, :, down, right].add_(small.coefficients)
                return replace(large, inside=inside)
        coefficients = self._within(window) + other._within(window)
        return Rows(coefficients, self.image, window, self.spot, inside=inside, fresh=True)

    def cropped(self, shape: torch.Size) -> Rows:
        """The same functions of a value of this shape, (B, ...), without pixels that none of them sees inside it."""
        assert self.window is not None
        window = self.window.cropped(shape[2:])
        down, right = window.within(self.window)
        inside = self.inside or window.inside(shape[2:])
        return replace(self, coefficients=self.coefficients[:, :, down, right], window=window, inside=inside)

    def _within(self, window: Window) -> Tensor:
        """The coefficients in a larger window of the same stride."""
        assert self.window is not None
        before = [new - old for new, old in zip(window.padding, self.window.padding, strict=True)]
        after = [new - old - start for new, old, start in zip(window.size, self.window.size, before, strict=True)]
        return F.pad(self.coefficients, (before[1], after[1], before[0], after[0]))

    def whole(self, shape: torch.Size) -> Rows:
        """The same functions with coefficients of the whole value, of this shape, (B, ...)."""
        if self.window is None:
            return self
        assert self.spot is not None
        if self.window.size == shape[2:] and self.window.inside(shape[2:]):
            return replace(self, window=None, spot=None)
        place, known = self.window.places(shape[2:], self.spot)
        pixels = self.coefficients.movedim(1, -1).reshape(-1, shape[1])
        starts = torch.arange(0, len(pixels), prod(self.window.size), dtype=place.dtype, device=place.device)
        index = starts.view(-1, len(place), 1) + place  # a pixel of all channels is copied at once
        known = known.unsqueeze(-1).to(pixels.dtype)
        found = pixels.index_select(0, index.flatten()).view(-1, *known.shape[:2], shape[1]).mul_(known)
        return Rows(found.view(-1, *shape[2:], shape[1]).movedim(-1, 1), self.image, fresh=True)


def _by_rows(coefficients: Tensor, seen: Tensor) -> Tensor:
    """View coefficients so that what the groups see broadcasts over their rows."""
    return coefficients.view(-1, *seen.shape)


def row_products(coefficients: Tensor, seen: Tensor) -> Tensor:
    """Inner product of every row with what it sees: one number for each row of `coefficients`."""
    if coefficients.ndim == 4:  # channels last, in the order of memory
        coefficients, seen = coefficients.permute(0, 2, 3, 1), seen.permute(0, 2, 3, 1)
    if len(seen) == 1:
        return coefficients.flatten(1) @ seen.flatten()
    rows = _by_rows(coefficients, seen).flatten(2).transpose(0, 1)
    # As a row times a matrix: MKL takes much longer for a matrix times a column.
    return torch.bmm(seen.flatten(1).unsqueeze(1), rows.transpose(1, 2)).squeeze(1).T.flatten()


def mirrored(rows: Rows) -> Rows:
    """The rows, and after them the same with the other sign."""
    return replace(rows, coefficients=torch.cat([rows.coefficients, -rows.coefficients]), fresh=True)


def _pair(numbers: Iterable[int]) -> Pair:
    first, second = numbers
    return first, second


def chunk_length(largest: int, device: torch.device) -> int:
    """Return how many neurons to carry at a time whose rows have at most so many coefficients of a value."""
    # A second chunk would be carried twice for a gradient, which costs more than leaving the cache.
    times = WITH_GRADIENT if device.type == "cpu" and torch.is_grad_enabled() else 1
    return max(1, times * CHUNK.get(device.type, CHUNK["cpu"]) // largest)


def single_pixels(grid: Sequence[int]) -> Window:
    """The windows of neurons anywhere in a layer of this height and width, in the layer itself."""
    return Window((1, 1), (1, 1), (0, 0), _pair(grid), (0, 0), _pair(count - 1 for count in grid))


def unit_rows(shape: torch.Size, image: Tensor, neuron: Tensor, like: Tensor) -> Rows:
    """The functions that pick one neuron each.

    Args:
        shape: of the value, (B, ...). image: of each group, (G,). neuron: which ones, (S · G,), numbered along the
            flattened value; those of a group differ in the channel alone if the value has the axes of an image.
        like: gives type and device.
    """
    if len(shape) != 4:
        coefficients = like.new_zeros(len(neuron), prod(shape[1:])).scatter_(1, neuron.unsqueeze(1), 1.0)
        return Rows(coefficients.view(len(neuron), *shape[1:]), image)
    positions = shape[2] * shape[3]
    channel, spot = neuron // positions, neuron[: len(image)] % positions
    coefficients = like.new_zeros(len(neuron), shape[1]).scatter_(1, channel.unsqueeze(1), 1.0)
    down, right = spot // shape[3], spot % shape[3]
    first, last = (_pair(int(end(places)) for places in (down, right)) for end in (torch.min, torch.max))
    window = replace(single_pixels(shape[2:]), first=first, last=last)
    return Rows(coefficients.view(len(neuron), shape[1], 1, 1), image, window, spot)
