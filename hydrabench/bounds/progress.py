"""The progress of the bounds of an image, for whoever wants to know while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """`share` of the neurons in front of a non-linear layer that `method` has bounded, in [0, 1].

    layer: which one, counted from 1; layers: how many there are, those that need no bounds of their own included.
    """

    method: str
    layer: int
    layers: int
    share: float

    def __str__(self) -> str:
        # What moves comes first: a narrow terminal cuts the rest off.
        return f"layer {self.layer}/{self.layers} {self.share:.0%} · {self.method}"


@dataclass(frozen=True)
class Branching:
    """The progress of branch and bound: `decided` of so many `images`, with so many subproblems bounded and open.

    lowest: the worst bound that is open.
    """

    decided: int
    images: int
    subproblems: int
    unproved: int
    lowest: float

    def __str__(self) -> str:
        return (
            f"{self.unproved:,} open, {self.subproblems:,} bounded, lowest {self.lowest:.3g}, "
            f"{self.decided}/{self.images} images · exact"
        )


Watcher = Callable[[Moment | Branching], None]
_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` called, in this thread, after every chunk of neurons that is bounded inside."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def tell(moment: Moment | Branching) -> None:
    """Tell the watcher, if there is one."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(moment)
