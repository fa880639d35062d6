"""Files that torch.save wrote: read as tensors and plain values only, never by running code from the file.

Two formats exist: a zip file with the pickle and one member per storage, and, before torch 1.6, pickles followed by the
storages. Both are read here and not by torch.load, which believes the sizes that a file claims: nothing is
allocated before they are compared with the size of the file.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hydrabench.checkpoints.foreign.unpickling import unpickle
from hydrabench.checkpoints.format import read_file
from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError
from hydrabench.files import replacing, sha256_of

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how the two formats begin
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DAMAGED = "it is damaged or cut short; fetch or write it again"
_Storage = torch.storage.TypedStorage


def read_torch_file(path: Path) -> tuple[Any, str, int]:
    """Read a file once and return what it holds, and the SHA-256 and the number of the bytes that were read.

    What it may hold: tensors (on the CPU), numbers, strings, arrays of numpy's, and containers of them.
    Raises: CheckpointError in one line if the file is missing, empty, a web page, a zip without weights, damaged,
        claims more than it holds, or could only be loaded by running code that it names.
    """
    data = read_file(path)
    try:
        _check_kind(data)
        values = (_read_zip if data.startswith(_ZIP) else _read_legacy)(data)
        return values, hashlib.sha256(data).hexdigest(), len(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # what a damaged file makes of the unpickler can be any exception
        raise CheckpointError(
            f"{path} is no file of torch.save, or is damaged or cut short; fetch or write it again"
        ) from error


def write_torch_file(path: Path, values: Mapping[str, Any]) -> str:
    """Write `values` with torch.save, whole or not at all, and return the file's SHA-256.

    The same values give the same bytes.
    """
    buffer = io.BytesIO()  # given a path, torch.save would write the name of the scratch file into it
    torch.save(values, buffer)
    with replacing(path) as scratch:
        scratch.write_bytes(buffer.getbuffer())
    return sha256_of(path)


def _check_kind(data: bytes) -> None:
    """Name the files that are commonly found in place of weights."""
    if not data:
        raise CheckpointError("is empty; fetch it again")
    if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError("is a web page, not weights: its link leads to one; fetch the file behind it")
    if data[257:262] == b"ustar":
        raise CheckpointError("is a tar archive, not weights; unpack it first and give the file in it")
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if not any(name.endswith("/data.pkl") for name in names):
        held = ", ".join(map(shown, names[:4])) + (", ..." if len(names) > 4 else "")
        raise CheckpointError(f"is a zip without weights (it holds {held or 'nothing'}); unpack it first")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError("is a TorchScript program, which is code; save its state dict with torch.save instead")


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        unpacked = sum(member.file_size for member in members.values())
        if unpacked > len(data):
            raise CheckpointError(
                f"claims {unpacked} bytes of data and has {len(data)} itself; torch.save never compresses, "
                "so it is damaged or was packed again: unpack it, or fetch it again"
            )
        root = next(name for name in members if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError("was written on a big-endian machine; write it again on another")
        storages: dict[Any, _Storage] = {}

        def storage(identity: tuple[Any, ...]) -> _Storage:
            """Read the storage that a persistent id of the pickle names. Raises: CheckpointError for another size."""
            _, kind, key, _, elements = identity
            member, dtype = members[f"{root}data/{key}"], _dtype_of(kind)
            if member.file_size != elements * dtype.itemsize:
                raise CheckpointError(
                    f"claims {elements} elements of {dtype} where it holds {member.file_size} bytes; {DAMAGED}"
                )
            if key not in storages:
                storages[key] = _typed(_storage_of(bytearray(archive.read(member))), dtype)
            return storages[key]

        return unpickle(io.BytesIO(archive.read(f"{root}data.pkl")), storage)


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)
    magic, _, system = (unpickle(file, _no_storage) for _ in range(3))
    if magic != _LEGACY_MAGIC or not system["little_endian"]:
        raise ValueError("no file of torch.save")
    storages: dict[Any, _Storage] = {}
    views: dict[Any, _Storage] = {}
    claimed = 0

    def storage(identity: tuple[Any, ...]) -> _Storage:
        """Make the storage that a persistent id names, or a view of it; the data follow behind the pickle.

        Raises: CheckpointError if all storages together claim more bytes than the file has.
        """
        nonlocal claimed
        _, kind, key, _, elements, view = identity
        dtype = _dtype_of(kind)
        if key not in storages:
            claimed += elements * dtype.itemsize
            if elements < 0 or claimed > len(data):
                raise CheckpointError(f"claims {claimed} bytes of tensors and has {len(data)} itself; {DAMAGED}")
            storages[key] = _typed(_storage_of(bytearray(elements * dtype.itemsize)), dtype)
        if view is None:
            return storages[key]
        name, start, length = view
        whole = storages[key]._untyped_storage
        views[name] = _typed(whole[start * dtype.itemsize : (start + length) * dtype.itemsize], dtype)
        return views[name]

    values = unpickle(file, storage)
    keys = unpickle(file, _no_storage)
    if sorted(keys) != sorted(storages):
        raise ValueError("storages without data")
    for key in keys:
        _fill(storages[key], file)
    return values


def _fill(storage: _Storage, file: io.BytesIO) -> None:
    """Read the content of a storage: the number of its elements, and its bytes."""
    target = storage._untyped_storage
    (elements,) = struct.unpack("<q", file.read(8))
    if elements * storage.dtype.itemsize != target.nbytes():
        raise CheckpointError(f"claims {target.nbytes()} bytes where it holds {elements} elements; {DAMAGED}")
    content = bytearray(file.read(target.nbytes()))
    if len(content) != target.nbytes():
        raise ValueError("cut short")
    target.copy_(_storage_of(content))


def _no_storage(identity: Any) -> Any:
    raise ValueError(f"no storage belongs here: {identity}")


def _dtype_of(kind: Any) -> torch.dtype:
    """The type of a storage's elements."""
    if kind is torch.UntypedStorage:
        return torch.uint8
    dtype = kind.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _storage_of(content: bytearray) -> torch.UntypedStorage:
    """A storage of these bytes. Unlike torch's own, it does not grow when a tensor claims to be larger."""
    held = torch.frombuffer(content or bytearray(1), dtype=torch.uint8).untyped_storage()
    return held if content else held[0:0]


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> _Storage:
    return _Storage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
