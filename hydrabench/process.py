"""Threads and memory of this process, set before torch is imported (this module does not import it)."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = (1 << 31) - 1


def prepare() -> None:
    """Set threads and memory so that runs are fast and repeatable; variables that the user has set stay.

    - Waiting threads sleep. Spinning ones take a core from other processes, which made small convolutions 20 to 200
      times slower on a busy two-core machine.
    - One MKL thread, which torch then uses for everything. Matrix products on several may differ in their last bits
      from run to run (no setting of MKL helps), and a resumed run would not end with the same bytes.
      `runtime.use_threads` takes more.
    - A row of a matrix product is rounded alike wherever it lies in memory (MKL_CBWR), so that an image's logits do not
      depend on its place in the batch. Without it, on an AMD EPYC, rows of 54 numbers came out in two versions.
    - Freed memory stays with the process. Fresh pages cost up to half of a pass over a large batch.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES // 2)
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def leave(code: object) -> None:
    """End a process that torchrun started at once; any other process goes on to its usual end.

    Threads of torch's process groups may outlive the interpreter and abort a process that has finished its work, which
    torchrun would report as a failure.
    Args:
        code: what `sys.exit` was given.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
