"""The compact layout: the state of a pruned network without its zeros, bit for bit.

A packed state is four one-dimensional uint8 tensors:

    values      the elements that are kept, of all tensors in order, gathered by dtype; elements of b bytes
                are cut into b planes (all first bytes, all second bytes, ...), and a plane is deflated if
                that makes it smaller: the plane that holds the exponents shrinks, mantissas do not
    unary       where the elements of sparse tensors belong, as gaps in a Rice code (see rice.py): quotients
    remainders  the remainders of these gaps
    table       deflated JSON: name, dtype, shape and code of every tensor, and a SHA-256 of everything unpacked

An element is dropped only if all its bits are zero, so -0.0, NaN and infinity come back as they were; see
`positive_zeros` for what that means for a network whose masks were baked in. A tensor is stored whole if
leaving its zeros out would take more bits.

The table is a tensor and not a second entry of the file's metadata, because safetensors writes several
entries in a random order, and the same network would no longer give the same bytes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, TypeAdapter, ValidationError
from torch import Tensor

from hydrabench.checkpoints import rice
from hydrabench.config import described
from hydrabench.config.fields import Section
from hydrabench.errors import CheckpointError

Bytes = NDArray[np.uint8]
Words = NDArray[Any]  # the elements of a tensor as unsigned integers of the same size, (N,)
MOST_TABLE = 1 << 24  # bytes of a table; that of a thousand tensors takes a hundred thousand
STREAMS = ("values", "unary", "remainders", "table")
# name of a dtype -> the dtype, and the unsigned integer of its size
DTYPES: dict[str, tuple[torch.dtype, type[np.unsignedinteger[Any]]]] = {
    "float16": (torch.float16, np.uint16),
    "bfloat16": (torch.bfloat16, np.uint16),
    "float32": (torch.float32, np.uint32),
    "float64": (torch.float64, np.uint64),
    "bool": (torch.bool, np.uint8),
    "uint8": (torch.uint8, np.uint8),
    "int8": (torch.int8, np.uint8),
    "int16": (torch.int16, np.uint16),
    "int32": (torch.int32, np.uint32),
    "int64": (torch.int64, np.uint64),
}


class TensorEntry(NamedTuple):
    """One tensor in the table. kept: its elements in `values`. width: of its Rice code; None if all are kept."""

    name: str
    dtype: str
    shape: tuple[NonNegativeInt, ...]
    kept: NonNegativeInt
    width: Annotated[int, Field(ge=0, le=rice.MAX_WIDTH)] | None


class TensorTable(Section):
    """The meaning of the streams. planes: by dtype, the bytes that each plane takes in `values`.

    A plane of as many bytes as elements is stored, a shorter one is deflated.
    """

    schema_: Literal["hydrabench.compact/1"] = Field(default="hydrabench.compact/1", alias="schema")
    tensors: tuple[TensorEntry, ...]
    planes: dict[str, tuple[NonNegativeInt, ...]]
    sha256: str


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Code a state without its zeros; `unpack` gives exactly the same tensors back, in the same order.

    Args:
        state: tensors of any shape and of a dtype of `DTYPES`.
    Returns: the tensors of `STREAMS`. The same state and zlib give the same bytes; any zlib reads them.
    Raises: CheckpointError for a tensor of another dtype.
    """
    entries: list[TensorEntry] = []
    kept: dict[str, list[Words]] = {}
    codes: list[tuple[rice.Bits, rice.Bits]] = []
    digest = hashlib.sha256()
    for name, tensor in state.items():
        words = _words(name, tensor)
        positions = np.flatnonzero(words)
        best, bits = rice.best_width(positions)
        width = best if bits < 8 * words.itemsize * (words.size - positions.size) else None
        if width is not None:
            codes.append(rice.encode(positions, width))
        values = words if width is None else words[positions]
        entry = TensorEntry(name, _dtype_name(tensor), tuple(tensor.shape), values.size, width)
        entries.append(entry)
        kept.setdefault(entry.dtype, []).append(values)
        _digest(digest, entry, words)
    planes = {dtype: [_shorter(plane) for plane in _planes(np.concatenate(parts))] for dtype, parts in kept.items()}
    lengths = {dtype: tuple(map(len, parts)) for dtype, parts in planes.items()}
    table = TensorTable(tensors=tuple(entries), planes=lengths, sha256=digest.hexdigest())
    streams = {
        "values": _array(b"".join(part for parts in planes.values() for part in parts)),
        "unary": rice.join([unary for unary, _ in codes]),
        "remainders": rice.join([remainders for _, remainders in codes]),
        "table": _array(zlib.compress(table.model_dump_json(by_alias=True).encode(), 9)),
    }
    return {name: torch.from_numpy(stream) for name, stream in streams.items()}


def unpack(
    streams: Mapping[str, Tensor], check: Callable[[Mapping[str, tuple[int, ...]]], None] | None = None
) -> dict[str, Tensor]:
    """Return the state that was packed.

    Args:
        streams: what `pack` returned.
        check: is given the shapes by name before anything of these sizes is allocated, and raises if they cannot be.
    Raises: CheckpointError if anything is missing, cut short, changed, or of an unknown version.
    """
    found = _check_streams(streams)
    table = _read_table(found["table"])
    if check is not None:
        check({entry.name: entry.shape for entry in table.tensors})
    kept = _read_values(found["values"], table)
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {}
    for entry, positions in _read_positions(found, table.tensors):
        values, kept[entry.dtype] = np.split(kept[entry.dtype], [entry.kept])
        words = values if positions is None else _spread(values, positions, entry)
        _digest(digest, entry, words)
        data = torch.from_numpy(words.view(np.uint8))
        state[entry.name] = data.view(DTYPES[entry.dtype][0]).reshape(entry.shape)
    if digest.hexdigest() != table.sha256:
        raise _damaged("its checksum does not match what it unpacks to")
    return state


def positive_zeros(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with every -0.0 replaced by 0.0, all other elements bit for bit the same.

    A negative weight times a mask of zero is -0.0. About half of the pruned weights of a baked network
    are, and as many of an original HYDRA "dense" file; their signs alone would take a bit per weight, more
    than the positions of the kept ones. Compared as numbers, no output of a network depends on them.
    """
    return {
        name: tensor.masked_fill(tensor == 0, 0) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _words(name: str, tensor: Tensor) -> Words:
    dtype = _dtype_name(tensor)
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{name} is {dtype}, which the compact layout cannot hold; convert it to one of: {', '.join(DTYPES)}"
        )
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return data.view(DTYPES[dtype][1])


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _planes(words: Words) -> Bytes:
    """Cut N words of b bytes into planes, (b, N)."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.itemsize).T)


def _shorter(plane: Bytes) -> bytes:
    # Floats repeat neither in strings nor in order: counting their bytes finds all there is, and is fast.
    deflate = zlib.compressobj(9, strategy=zlib.Z_RLE)
    deflated = deflate.compress(plane.tobytes()) + deflate.flush()
    return deflated if len(deflated) < plane.size else plane.tobytes()


def _array(data: bytes) -> Bytes:
    return np.frombuffer(bytearray(data), np.uint8)


def _digest(digest: hashlib._Hash, entry: TensorEntry, words: Words) -> None:
    """Add one tensor. Its name, dtype and shape count, too: they are part of what must come back."""
    digest.update(f"{entry.name}\n{entry.dtype}\n{list(entry.shape)}\n".encode())
    digest.update(words.data)


def _damaged(reason: str) -> CheckpointError:
    return CheckpointError(f"the compact data is damaged: {reason}; fetch or write it again")


def _check_streams(streams: Mapping[str, Tensor]) -> dict[str, Bytes]:
    if set(streams) != set(STREAMS):
        raise _damaged(f"it holds {', '.join(sorted(streams)) or 'nothing'} instead of {', '.join(sorted(STREAMS))}")
    for name, stream in streams.items():
        if stream.dtype != torch.uint8 or stream.dim() != 1:
            raise _damaged(f"{name} is {_dtype_name(stream)} of shape {tuple(stream.shape)} instead of a row of bytes")
    return {name: stream.numpy() for name, stream in streams.items()}


def _read_table(stream: Bytes) -> TensorTable:
    try:
        table = TypeAdapter(TensorTable).validate_json(_inflate(stream, "its table", limit=MOST_TABLE))
    except ValidationError as error:
        raise CheckpointError(
            f"the compact data has a table this version cannot read: {described(error, most=4)}"
        ) from error
    if len({entry.name for entry in table.tensors}) < len(table.tensors):
        raise _damaged("two of its tensors have the same name")
    if {entry.dtype for entry in table.tensors} != set(table.planes) or not set(table.planes) <= set(DTYPES):
        raise _damaged(f"its values are {', '.join(table.planes)}, which is not what its tensors need")
    for entry in table.tensors:
        if entry.kept > prod(entry.shape) or (entry.width is None and entry.kept < prod(entry.shape)):
            raise _damaged(f"{entry.name} has shape {entry.shape}, which does not fit its {entry.kept} values")
    return table


def _read_values(stream: Bytes, table: TensorTable) -> dict[str, Words]:
    """The kept elements of all tensors, in order, by dtype."""
    needed = sum(length for lengths in table.planes.values() for length in lengths)
    if stream.size != needed:
        raise _damaged(f"it holds {stream.size} bytes of values instead of {needed}")
    found: dict[str, Words] = {}
    rest = stream
    for dtype, lengths in table.planes.items():
        word = DTYPES[dtype][1]
        count = sum(entry.kept for entry in table.tensors if entry.dtype == dtype)
        if len(lengths) != np.dtype(word).itemsize or max(lengths) > count:
            raise _damaged(f"its {count} {dtype} values cannot have planes of {lengths} bytes")
        if count > 1032 * max(1, stream.size):  # deflate shortens by no more
            raise _damaged(f"its {count} {dtype} values cannot lie in {stream.size} bytes")
        data = np.empty((count, len(lengths)), np.uint8)
        for place, length in enumerate(lengths):
            plane, rest = np.split(rest, [length])
            data[:, place] = plane if length == count else _inflate_plane(plane, count)
        found[dtype] = data.reshape(-1).view(word)
    return found


def _inflate_plane(plane: Bytes, count: int) -> Bytes:
    data = np.frombuffer(_inflate(plane, "a plane of its values", limit=count), np.uint8)
    if data.size != count:
        raise _damaged(f"a plane of its values holds {data.size} bytes instead of {count}")
    return data


def _inflate(part: Bytes, what: str, limit: int = 0) -> bytes:
    """Undo zlib, exactly; a positive `limit` is how many bytes may come of it."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(part.tobytes(), limit + 1 if limit else 0)
    except zlib.error as error:
        raise _damaged(f"{what} cannot be read ({error})") from error
    if not inflate.eof or inflate.unused_data:
        raise _damaged(f"{what} does not end where it should")
    return data


def _read_positions(
    found: Mapping[str, Bytes], entries: tuple[TensorEntry, ...]
) -> Iterator[tuple[TensorEntry, rice.Positions | None]]:
    """Yield every entry with the positions of its kept elements, None if it keeps all."""
    coded = [(entry.kept, entry.width) for entry in entries if entry.width is not None]
    unary, remainders = np.unpackbits(found["unary"]), np.unpackbits(found["remainders"])
    quotients = rice.read_quotients(unary)
    places, bits = sum(kept for kept, _ in coded), sum(kept * width for kept, width in coded)
    spare = unary.size - int(quotients.sum()) - quotients.size, remainders.size - bits
    if quotients.size != places or not all(0 <= count < 8 for count in spare) or remainders[bits:].any():
        raise _damaged(f"it holds {quotients.size} places for {places} values, with {spare} bits to spare")
    for entry in entries:
        if entry.width is None:
            yield entry, None
            continue
        part, quotients = np.split(quotients, [entry.kept])
        low, remainders = np.split(remainders, [entry.kept * entry.width])
        yield entry, rice.decode(part, low, entry.width)


def _spread(values: Words, positions: rice.Positions, entry: TensorEntry) -> Words:
    """All elements of a tensor: `values` at `positions`, zeros elsewhere."""
    count = prod(entry.shape)
    if positions.size and positions[-1] >= count:
        raise _damaged(f"{entry.name} has {count} elements, but one belongs at position {positions[-1]}")
    try:
        words = np.zeros(count, values.dtype)
    except (MemoryError, ValueError) as error:
        raise _damaged(f"{entry.name} would have {count} elements") from error
    words[positions] = values
    return words
