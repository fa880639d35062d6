"""How this process uses cores and memory; to be set before torch is imported, which this module does not do."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = (1 << 31) - 1


def prepare() -> None:
    """Choose what made runs fast and repeatable wherever it was measured; what the user has set stays.

    Threads that wait by spinning fight for a core that another process needs, which made small convolutions 20 to 200
    times slower on a busy two-core machine. Matrix products on several MKL threads may differ in their last bits from
    run to run (MKL_CBWR does not help), so that a resumed run would not end with the same bytes: one thread, which
    torch then takes for everything, is the default; `runtime.use_threads` takes more. Memory that is freed stays with
    the process: fresh pages cost up to half of a pass over a large batch.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES // 2)
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def leave(code: object) -> None:
    """End a process that torchrun started, at once, when its work is done; any other goes on to its usual end.

    Threads of torch's process groups that outlive the interpreter abort now and then a process that had nothing left to
    do, and torchrun would report a failure.
    Args:
        code: what `sys.exit` was given.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
