"""Where a command computes and where it finds data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """device: "auto", "cpu", "cuda" or "cuda:N". data_dir: None for HYDRABENCH_DATA. download: fetch missing data."""

    device: str = "auto"
    data_dir: Path | None = None
    download: bool = False
