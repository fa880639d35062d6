"""The compact layout: bit for bit there and back, near the entropy in size, and never a silent wrong answer."""

from __future__ import annotations

import json
import zlib
from math import log2, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hydrabench.checkpoints.compact import DTYPES, STREAMS, pack, positive_zeros, unpack
from hydrabench.errors import CheckpointError
from hydrabench.masking import attach_masks, bake_masks, kept_count
from hydrabench.models import build_model

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (3, 0, 2)]), st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
)


def random_tensor(dtype: str, shape: tuple[int, ...], density: float, seed: int) -> torch.Tensor:
    """Random bits (NaN, infinity and denormals among them) at random places, zeros elsewhere."""
    rng, word = np.random.default_rng(seed), DTYPES[dtype][1]
    count = prod(shape)
    bits = rng.integers(0, 2 if dtype == "bool" else np.iinfo(word).max, count, word, endpoint=dtype != "bool")
    bits[rng.random(count) >= density] = 0
    return torch.from_numpy(bits.view(np.uint8)).view(DTYPES[dtype][0]).reshape(shape)


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """The same names in the same order, dtypes, shapes and bits."""
    return [(name, t.dtype, t.shape, bits_of(t)) for name, t in first.items()] == [
        (name, t.dtype, t.shape, bits_of(t)) for name, t in second.items()
    ]


def size(streams: dict[str, torch.Tensor], *names: str) -> int:
    return sum(streams[name].numel() for name in names or STREAMS)


def small_state() -> dict[str, torch.Tensor]:
    """Sparse and dense tensors, deflated planes and stored ones, several dtypes."""
    return {
        "conv.weight": random_tensor("float32", (16, 8, 3, 3), 0.03, 1),
        "bn.weight": torch.ones(40),
        "bn.bias": random_tensor("float32", (8,), 1.0, 2),
        "bn.num_batches_tracked": torch.tensor(391),
        "half": random_tensor("float16", (6, 6), 0.3, 3),
    }


def test_ten_weights_worked_by_hand():
    """1.0, -2.0 and 0.5 at positions 2, 3 and 9; see test_rice.py for their 6 + 3 bits.

    011001 and 001, filled to bytes, are 0x64 and 0x20. The values are 3f800000, c0000000 and 3f000000:
    lowest bytes first, that is the planes 00 00 00, 00 00 00, 80 00 00 and 3f c0 3f, too short to deflate.
    """
    streams = pack({"w": torch.tensor([0, 0, 1.0, -2.0, 0, 0, 0, 0, 0, 0.5])})
    assert list(streams) == list(STREAMS)
    assert bits_of(streams["unary"]) == b"\x64"
    assert bits_of(streams["remainders"]) == b"\x20"
    assert bits_of(streams["values"]) == bytes.fromhex("000000 000000 800000 3fc03f")
    table = json.loads(zlib.decompress(bits_of(streams["table"])))
    assert table["schema"] == "hydrabench.compact/1"
    assert table["tensors"] == [["w", "float32", [10], 3, 1]]
    assert table["planes"] == {"float32": [3, 3, 3, 3]}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40)
@given(shape=SHAPES, density=st.sampled_from([0, 0.01, 0.1, 0.5, 0.9, 1]), seed=SEEDS)
def test_every_tensor_comes_back_bit_for_bit(dtype, shape, density, seed):
    state = {"before": torch.ones(3), "x": random_tensor(dtype, shape, density, seed), "after": torch.tensor(7)}
    assert is_same(unpack(pack(state)), state)


@settings(max_examples=40)
@given(names=st.lists(st.text(max_size=5), unique=True, max_size=8), seed=SEEDS)
def test_states_keep_their_names_and_order(names, seed):
    dtypes = list(DTYPES)
    state = {
        name: random_tensor(dtypes[(seed + place) % len(dtypes)], (5, 4), 0.2, seed + place)
        for place, name in enumerate(names)
    }
    assert is_same(unpack(pack(state)), state)


@pytest.mark.parametrize("value", [-0.0, torch.nan, -torch.inf, 1e-45], ids=str)
def test_a_value_that_looks_like_none_is_one(value):
    """Each of them has bits that are not zero, -0.0 its sign."""
    state = {"x": torch.zeros(100)}
    state["x"][17] = value
    streams = pack(state)
    assert size(streams, "values") == 4
    assert is_same(unpack(streams), state)


def test_tensors_that_are_parameters_or_not_contiguous_are_packed_as_they_look():
    weight = torch.arange(12.0).reshape(3, 4)
    found = unpack(pack({"parameter": torch.nn.Parameter(weight), "turned": weight.T, "every other": weight[:, ::2]}))
    assert is_same(found, {"parameter": weight, "turned": weight.T, "every other": weight[:, ::2]})
    assert not found["parameter"].requires_grad


def test_the_same_state_gives_the_same_file_and_a_file_the_same_state(tmp_path):
    for name in ("a", "b"):
        save_file(pack(small_state()), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert is_same(unpack(load_file(tmp_path / "a")), small_state())


@pytest.mark.parametrize("density", [0.1, 0.05, 0.01])
def test_a_pruned_state_takes_little_more_than_the_entropy_bound(density):
    """Random places and values of 32 random bits, which nothing can shorten: n·H(k) + 32·kept bits, and 3 bytes.

    The 3 bytes are those of `unary` and `remainders` that are not full, and the rounding of the bound.
    """
    n, generator = 500_000, torch.Generator().manual_seed(0)
    kept = kept_count(n, density)
    words = torch.zeros(n, dtype=torch.int32)
    places = torch.randperm(n, generator=generator)[:kept]
    words[places] = torch.randint(1, 2**31, (kept,), generator=generator).int() * (-1) ** torch.arange(kept).int()
    streams = pack({"weight": words.view(torch.float32).reshape(500, 1000)})
    k = kept / n
    positions = n * -(k * log2(k) + (1 - k) * log2(1 - k)) / 8
    assert positions < size(streams, "unary", "remainders") < 1.02 * positions + 3
    assert 0.99 * 4 * kept < size(streams, "values") <= 4 * kept
    assert size(streams) < 1.005 * (positions + 4 * kept) + 400


def test_the_bytes_of_exponents_are_deflated():
    """The highest byte, sign and 7 bits of exponent, of normal values is one of few: 2 to 3 bits of 32 remain of 8."""
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    streams = pack({"x": values})
    assert size(streams, "values") < 0.9 * 4 * values.numel()
    assert is_same(unpack(streams), {"x": values})


@pytest.mark.parametrize(("zeros", "entry"), [(3, [100, None]), (4, [96, 0])])
def test_few_zeros_are_stored_like_other_values(zeros, entry):
    """Saying which of 100 places are zero takes 100 bits: more than 3 zeros of 32 bits, less than 4."""
    values = torch.ones(100)
    values[torch.arange(zeros) * 10] = 0
    table = json.loads(zlib.decompress(bits_of(pack({"x": values})["table"])))
    assert table["tensors"] == [["x", "float32", [100], *entry]]


@settings(max_examples=60)
@given(shape=SHAPES, density=st.floats(0, 1), seed=SEEDS, dtype=st.sampled_from(list(DTYPES)))
def test_no_state_takes_more_than_its_own_bytes_beside_the_table(shape, density, seed, dtype):
    tensor = random_tensor(dtype, shape, density, seed)
    # Two streams of bits may each end within a byte.
    assert size(pack({"x": tensor}), "values", "unary", "remainders") <= tensor.nbytes + 2


def test_a_baked_network_is_small_once_its_zeros_are_positive():
    """`weight * mask` is -0.0 where a negative weight was pruned: about half of 214,760 weights, at density 0.01."""
    network = build_model("cifar_model", (3, 32, 32), 10, generator=torch.Generator().manual_seed(0)).eval()
    attach_masks(network, 0.01)
    bake_masks(network)
    state = network.state_dict()
    streams = pack(positive_zeros(state))
    assert all(torch.equal(tensor, state[name]) for name, tensor in unpack(streams).items())
    assert size(streams) < sum(tensor.nbytes for tensor in state.values()) / 60
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(x)
        network.load_state_dict(unpack(streams))
        assert torch.equal(network(x), before)


def test_positive_zeros_change_nothing_but_the_sign_of_zero():
    state = {"x": torch.tensor([-0.0, 0.0, -1.5, torch.nan, -torch.inf, -1e-45]), "n": torch.tensor(-3)}
    expected = {"x": torch.tensor([0.0, 0.0, -1.5, torch.nan, -torch.inf, -1e-45]), "n": torch.tensor(-3)}
    assert is_same(positive_zeros(state), expected)
    assert torch.signbit(state["x"][0])


def test_a_dtype_that_the_layout_cannot_hold_is_named():
    with pytest.raises(CheckpointError, match="w is complex64, which the compact layout cannot hold; convert it to"):
        pack({"w": torch.zeros(2, dtype=torch.complex64)})


def damaged(streams: dict[str, torch.Tensor], name: str, data: bytes) -> dict[str, torch.Tensor]:
    return {**streams, name: torch.tensor(list(data), dtype=torch.uint8)}


@pytest.mark.parametrize("name", STREAMS)
def test_every_changed_byte_is_noticed(name):
    streams = pack(small_state())
    data = bits_of(streams[name])
    assert len(data) > 10
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        with pytest.raises(CheckpointError, match="the compact data is damaged"):
            unpack(damaged(streams, name, changed))


@pytest.mark.parametrize("name", STREAMS)
def test_no_changed_bit_gives_another_state(name):
    """Only bits that fill up the last byte of a deflated part may change, at most 7 in each: the state is the same."""
    streams = pack(small_state())
    data = bits_of(streams[name])
    harmless = 0
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = unpack(damaged(streams, name, changed))
        except CheckpointError:
            continue
        assert is_same(found, small_state())
        harmless += 1
    assert harmless <= 7 * {"values": 4, "table": 1}.get(name, 0)


@pytest.mark.parametrize("name", STREAMS)
def test_every_stream_cut_short_or_grown_is_noticed(name):
    streams = pack(small_state())
    data = bits_of(streams[name])
    for changed in (b"", data[:-1], data[1:], data + b"\x00", data + data):
        with pytest.raises(CheckpointError, match="the compact data is damaged"):
            unpack(damaged(streams, name, changed))


@pytest.mark.parametrize("count", [199, 201])
def test_a_plane_of_another_number_of_values_is_noticed(count):
    """Runs of 199, 200 and 201 equal bytes are deflated to the same length."""
    streams, other = pack({"x": torch.ones(200)}), pack({"x": torch.ones(count)})
    assert streams["values"].shape == other["values"].shape
    with pytest.raises(CheckpointError, match=f"a plane of its values holds {count} bytes instead of 200"):
        unpack({**streams, "values": other["values"]})


def test_missing_unknown_and_misshapen_streams_are_named():
    streams = pack(small_state())
    with pytest.raises(CheckpointError, match="it holds remainders, table, values instead of remainders, table, unary"):
        unpack({name: stream for name, stream in streams.items() if name != "unary"})
    with pytest.raises(CheckpointError, match="it holds extra, remainders, table, unary, values instead of"):
        unpack({**streams, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unary is float32 of shape \(2, 2\) instead of a row of bytes"):
        unpack({**streams, "unary": torch.zeros(2, 2)})


def with_table(state: dict[str, torch.Tensor], change) -> dict[str, torch.Tensor]:
    """Pack, and write a table that is whole but not the right one."""
    streams = pack(state)
    table = json.loads(zlib.decompress(bits_of(streams["table"])))
    change(table)
    return damaged(streams, "table", zlib.compress(json.dumps(table).encode()))


def first(**changes):
    fields = ("name", "dtype", "shape", "kept", "width")
    return lambda table: [
        table["tensors"][0].__setitem__(fields.index(field), value) for field, value in changes.items()
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.update(schema="hydrabench.compact/2"), "a table this version cannot read: schema: input"),
        (lambda table: table.update(more=1), "a table this version cannot read: more: unknown key"),
        (lambda table: table.update(sha256="0" * 64), "its checksum does not match"),
        (first(name="y"), "its checksum does not match"),
        (first(shape=[5, 4]), "its checksum does not match"),
        (first(shape=[21]), "its checksum does not match"),
        (first(name="b"), "two of its tensors have the same name"),
        (first(dtype="int32"), "its values are float32, which is not what its tensors need"),
        (first(shape=[9]), "x has 9 elements, but one belongs at position 9"),
        (first(shape=[2]), r"x has shape \(2,\), which does not fit its 3 values"),
        (first(shape=[2**40, 2**40]), "x would have .* elements"),
        (first(kept=2), r"its 3 float32 values cannot have planes of \(4, 4, 4, 4\) bytes"),
        (first(kept=2, width=None), r"x has shape \(20,\), which does not fit its 2 values"),
        (first(width=4), r"it holds 3 places for 3 values, with \(2, -4\) bits to spare"),
        (first(width=0), r"it holds 3 places for 3 values, with \(2, 8\) bits to spare"),
        (first(width=32), "a table this version cannot read: tensors.0.4"),
        (first(width=-1), "a table this version cannot read: tensors.0.4"),
        (lambda table: table["planes"].update(float32=[4, 4, 4]), "it holds 16 bytes of values instead of 12"),
        (
            lambda table: table["planes"].update(float32=[4, 4, 8]),
            r"4 float32 values cannot have planes of \(4, 4, 8\)",
        ),
        (lambda table: table["planes"].update(float32=[16, 0, 0, 0]), r"cannot have planes of \(16, 0, 0, 0\) bytes"),
    ],
)
def test_a_table_that_says_something_else_is_refused(change, message):
    """x holds 3 values at 2, 3 and 9 of 20 (width 1), b one value: 4 planes of 4 bytes."""
    x = torch.zeros(20)
    x[[2, 3, 9]] = torch.tensor([1.0, -2.0, 0.5])
    with pytest.raises(CheckpointError, match=message):
        unpack(with_table({"x": x, "b": torch.ones(1)}, change))
