"""Parquet files as the Hugging Face hub has them, and a cache of each test's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache during a test."""
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def write_parquet() -> Callable[..., np.ndarray]:
    def write(
        file: Path,
        labels: Sequence[Any],
        *,
        image: str = "img",
        label: str = "label",
        side: int = 32,
        seed: int = 0,
        **columns: Sequence[Any],
    ) -> np.ndarray:
        """Write random images with these labels, losslessly, and return them, (N, H, W, 3)."""
        images = np.random.default_rng(seed).integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
        encoded = []
        for pixels in images:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({image: encoded, label: list(labels), **columns}), file)
        return images

    return write
