"""The state of a search as a file, so that a killed run goes on inside an image, with the same result.

A state is arrays and numbers, never code. It belongs to one problem, by a hash, and is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any
from zipfile import BadZipFile

import numpy as np

from hydrabench.bounds.exact.root import Root
from hydrabench.bounds.exact.splits import Subproblem
from hydrabench.files import replacing

SUFFIX = ".search.npz"
EVERY = 20.0  # seconds between two states
MOST = 2**28  # bytes of slopes, by far the largest part; of a larger state none is written, and the last one stays
PER_SUBPROBLEM = (
    "places",
    "sides",
    "points",
    "multipliers",
    "slopes",
    "candidates",
    "cuts",
)  # arrays; the rest: numbers
NUMBERS = ("task", "lower", "serial")


@dataclass(eq=False)
class Store:
    """The place where searches keep their states. folder: of the run. name: of this process's file."""

    folder: Path
    name: str
    saved_at: float = field(default_factory=perf_counter)

    @property
    def path(self) -> Path:
        """The file of this process."""
        return self.folder / f"{self.name}{SUFFIX}"

    def is_due(self) -> bool:
        """Return whether the last state is old."""
        return perf_counter() - self.saved_at >= EVERY

    def load(self, key: str) -> tuple[list[Subproblem], list[dict[str, Any]]] | None:
        """Return the state of the problem with this key, if a process has left one."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            found = _read(path, key)
            if found is not None:
                return found
        return None

    def save(self, key: str, subproblems: Sequence[Subproblem], trees: Sequence[dict[str, Any]]) -> None:
        """Write a state down, unless it is too large. trees: what JSON can hold of each image."""
        if sum(each.slopes.nbytes for each in subproblems if each.slopes is not None) > MOST:
            return
        arrays = _packed(subproblems)
        about = {"key": key, "trees": list(trees)}
        content = io.BytesIO()
        np.savez(content, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        with replacing(self.path) as scratch:
            scratch.write_bytes(content.getvalue())
        self.saved_at = perf_counter()


_STORE: ContextVar[Store | None] = ContextVar("store", default=None)


@contextmanager
def kept_in(folder: Path, name: str) -> Iterator[None]:
    """Have searches of this thread keep their states in a folder; they are removed when the block ends well."""
    store = Store(folder, name)
    token = _STORE.set(store)
    try:
        yield
    finally:
        _STORE.reset(token)
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)


def current_store() -> Store | None:
    """Return the place where searches keep their states now; None: nowhere."""
    return _STORE.get()


def key_of(root: Root) -> str:
    """Return a hash of what is decided: images, radius, functions, and what is known of them before a cut."""
    found = hashlib.sha256(f"1 {root.ball.epsilon!r} {root.ball.norm} {tuple(root.ball.x.shape)}".encode())
    for part in (root.ball.x, root.rows, root.offset, root.lower, root.upper):
        found.update(part.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def _packed(subproblems: Sequence[Subproblem]) -> dict[str, Any]:
    """Lay subproblems end to end: for each array its entries and where each begins."""
    found: dict[str, Any] = {name: np.array([getattr(each, name) for each in subproblems]) for name in NUMBERS}
    for name in PER_SUBPROBLEM:
        parts = [getattr(each, name) for each in subproblems]
        given = [np.zeros((0,), np.float32) if part is None else part for part in parts]
        found[name] = np.concatenate([part.ravel() for part in given]) if given else np.zeros(0)
        found[f"{name}_size"] = np.array([part.size for part in given], np.int64)
    shapes = [(0, 0) if each.slopes is None else each.slopes.shape for each in subproblems]
    found["slopes_shape"] = np.array(shapes, np.int64).reshape(len(subproblems), 2)
    return found


def _read(path: Path, key: str) -> tuple[list[Subproblem], list[dict[str, Any]]] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["key"] != key:
                return None
            return _unpacked({name: arrays[name] for name in arrays.files}), about["trees"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # another program's, or a damaged one: the image begins anew


def _unpacked(arrays: dict[str, Any]) -> list[Subproblem]:
    columns: dict[str, list[Any]] = {name: arrays[name].tolist() for name in NUMBERS}
    for name in PER_SUBPROBLEM:
        ends = np.cumsum(arrays[f"{name}_size"])
        columns[name] = np.split(arrays[name], ends[:-1]) if len(ends) else []
    shapes = arrays["slopes_shape"].tolist()
    columns["slopes"] = [
        part.reshape(shape) if shape != [0, 0] else None for part, shape in zip(columns["slopes"], shapes, strict=True)
    ]
    names = [one.name for one in fields(Subproblem)]
    return [
        Subproblem(**dict(zip(names, row, strict=True))) for row in zip(*(columns[name] for name in names), strict=True)
    ]
