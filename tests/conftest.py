"""What all tests need: threads that sleep while they wait (see hydrabench/cli), and no caches of the user's."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("HYDRABENCH_DATA", None)
