"""Opening checkpoints, with a progress bar where one must be downloaded first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hydrabench.checkpoints import Checkpoint, open_ref
from hydrabench.checkpoints.fetch import Progress
from hydrabench.workflows.progress import LOG_SECONDS, Advance, say, tracking


def open_checkpoint(
    ref: str, *, arch: str | None = None, dataset: str | None = None, density: float | None = None
) -> Checkpoint:
    """Open a checkpoint as `hydrabench.checkpoints.open_ref` does, and show how far a download has come."""
    with megabytes(ref) as progress:
        return open_ref(ref, arch=arch, dataset=dataset, density=density, progress=progress)


@contextmanager
def megabytes(name: str) -> Iterator[Progress]:
    """Show how many megabytes have come: as `tracking` does, or in plain lines if the server tells no total."""
    with ExitStack() as stack:
        advance: Advance | None = None
        shown, printed = 0, time.monotonic()

        def report(done: int, total: int | None) -> None:
            nonlocal advance, shown, printed
            now = math.ceil(done / 1e6) if done == total else int(done / 1e6)
            if total is not None and advance is None:
                advance = stack.enter_context(tracking(f"fetch {name}, MB", total=math.ceil(total / 1e6)))
            if total is not None and advance is not None and now != shown:
                advance(now - shown, "")
            elif total is None and time.monotonic() - printed >= LOG_SECONDS:
                printed = time.monotonic()
                say(f"fetch {name}: {now} MB")
            shown = now

        yield report
