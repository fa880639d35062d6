"""What all tests need: threads as the command line sets them (see hydrabench/cli), and no caches of the user's."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.pop("HYDRABENCH_DATA", None)
