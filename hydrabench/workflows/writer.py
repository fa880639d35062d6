"""One writer for a folder: under torchrun, the main process holds the lock for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hydrabench.ledger import writing
from hydrabench.runtime import World


@contextmanager
def one_writer(folder: Path, world: World) -> Iterator[None]:
    """Let this command alone write `folder` inside the block; see `ledger.writing`, whose error all processes raise."""
    with ExitStack() as stack:
        world.on_main(lambda: stack.enter_context(writing(folder)))
        yield
