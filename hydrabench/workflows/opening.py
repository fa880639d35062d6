"""Opening checkpoints, with a progress bar where one must be downloaded first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

from hydrabench.checkpoints import Checkpoint, is_torch_file, open_ref, resolve
from hydrabench.checkpoints.download import Progress
from hydrabench.runtime import World
from hydrabench.workflows.progress import LOG_SECONDS, Advance, log_line, say, tracking

NOTHING: Mapping[str, Any] = MappingProxyType({})  # said of a checkpoint that says everything itself


def open_checkpoint(ref: str, **described: Any) -> Checkpoint:
    """Open a checkpoint as `hydrabench.checkpoints.open_ref` does, and show how far a download has come.

    Args:
        described: `arch`, `dataset`, `density` and `normalization` of a file of others, as far as they were given.
    Wrappers that were removed around the tensors are named on stderr.
    """
    with megabytes(ref) as progress:
        checkpoint = open_ref(ref, **described, progress=progress)
    for note in checkpoint.notes if World().is_main else ():
        say(note)
    return checkpoint


def open_expected(ref: str, expected: Mapping[str, Any], **described: Any) -> Checkpoint:
    """Open a checkpoint as `open_checkpoint` does; what a file of others does not say is as in `expected`."""
    with megabytes(ref) as progress:
        path = resolve(ref, progress=progress)
    return open_checkpoint(ref, **({**expected, **described} if is_torch_file(path) else described))


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
                say(log_line(f"fetch {name}", f"{now} MB"))
            shown = now

        yield report
