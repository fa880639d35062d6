"""Pickles of torch.save, read without running anything: torch's restricted unpickler and stand-ins for numpy's.

torch's unpickler for `weights_only` knows tensors, numbers, strings and containers. Training scripts also leave
numpy's numbers and arrays in their files (HYDRA's cosine schedule makes the learning rate a numpy.float64). Their
reconstruction is allowed here under both names of numpy's package, `numpy.core` and `numpy._core`. What these names
stand for are the functions and classes below: a pickle calls none of numpy's own, whose `__setstate__` trusts sizes.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch import _weights_only_unpickler as restricted

from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError

# Kinds of numpy's data types whose values are plain bytes: boolean, integer, unsigned, float, complex, strings.
PLAIN_KINDS = "biufcSU"
_ALONE = threading.Lock()  # torch's list of allowed names belongs to the process


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, code: object, _align: object = False, _copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([?bBhHiIlLqQefdFDSU]|[biufcSU]\d{1,4})", code):
            raise ValueError(f"numpy type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order, the only part of a plain type's state that says something."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """Stands for numpy.ndarray; `value` has the elements."""

    value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take version, shape, type, memory order and bytes."""
        _, shape, kind, fortran, raw = state
        elements = np.frombuffer(raw, _plain(kind))
        self.value = elements.reshape(shape, order="F" if fortran else "C")

    def tensor(self) -> Tensor | None:
        """The array as a tensor; None if torch has no such type."""
        try:
            return None if self.value is None else torch.from_numpy(self.value.copy(order="C"))
        except TypeError:
            return None


class _ArrayClass:
    """Stands for numpy.ndarray where a pickle names the class of an array that is to be made."""


def _scalar(kind: object, raw: bytes) -> Any:
    """Stands for numpy.core.multiarray.scalar; returns a plain number or string."""
    (value,) = np.frombuffer(raw, _plain(kind))
    return value.item()


def _reconstruct(kind: object, _shape: object, _code: object) -> NumpyArray:
    """Stands for numpy.core.multiarray._reconstruct: an empty array, whose state comes next."""
    if kind is not _ArrayClass:
        raise ValueError("a subclass of numpy.ndarray")
    return NumpyArray()


def _plain(kind: object) -> np.dtype[Any]:
    if not isinstance(kind, _Dtype) or kind.dtype.kind not in PLAIN_KINDS or kind.dtype.itemsize == 0:
        raise ValueError("not a plain numpy type")
    return kind.dtype


NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _ArrayClass,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    # Never named by a pickle of numpy's, but the unpickler sets the state of listed classes only.
    "hydrabench.numpy_array": NumpyArray,
}


# What torch's own pickles name: storages and types, and the functions that make tensors of them. Its unpickler allows
# more, of which some take a size and allocate it at once.
TORCH = re.compile(
    r"torch\.(\w+Storage|storage\.(Typed|Untyped)Storage|u?int\d+|b?float\d*\w*|half|double|long|bool|complex\d+"
    r"|Size|device)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout|collections\.OrderedDict|_codecs\.encode"
)


def unpickle(file: BinaryIO, persistent_load: Callable[[Any], Any]) -> Any:
    """Return the next pickled value of `file`.

    Args:
        persistent_load: gives the storage that an entry of the pickle names.
    Raises: CheckpointError if the pickle names anything else that would have to be run; any exception if it is
        damaged.
    """
    _require_known_names(file)
    unpickler: Any = restricted.Unpickler(file, encoding="utf-8")
    unpickler.persistent_load = persistent_load
    allowed: list[Any] = [(function, name) for name, function in NUMPY.items()]
    with _ALONE, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return unpickler.load()
        finally:
            # What torch.load would check after it; a sparse tensor is refused by its layout.
            torch._utils._sparse_tensors_to_validate.clear()


def _require_known_names(file: BinaryIO) -> None:
    """Read through the next pickle, without making anything of it, and refuse names that are not data's."""
    start = file.tell()
    for name in sorted(restricted.get_globals_in_pkl(file)):  # type: ignore[no-untyped-call]
        if name not in NUMPY and not TORCH.fullmatch(name):
            raise CheckpointError(
                f"can only be loaded by running code ({shown(name)}), which is refused; where you trust it, "
                "save its state dict alone with torch.save"
            )
    file.seek(start)
