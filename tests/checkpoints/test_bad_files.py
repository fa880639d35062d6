"""Files that are damaged, lie about their sizes, or are programs: each is one line, soon, and takes no memory."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hydrabench.checkpoints import Header, open_ref, save_checkpoint, state_of
from hydrabench.errors import HydrabenchError
from hydrabench.masking import attach_masks, bake_masks
from hydrabench.models import build_model

GIVEN = {"arch": "cifar_model", "dataset": "cifar10", "normalization": "none"}
SHAPE = (3, 32, 32)
HEADER = {"schema": "hydrabench.checkpoint/1", "layout": "dense", "phase": "imported", "arch": "cifar_model",
          "dataset": "cifar10", "shape": SHAPE, "num_classes": 10, "density": 1.0,
          **dict.fromkeys(["normalization", "objective", "recipe", "recipe_sha256", "seed", "selection",
                           "parent"])}  # fmt: skip
STATE = state_of(build_model("cifar_model", SHAPE, 10, generator=torch.Generator().manual_seed(0)))


# Files of ours ---------------------------------------------------------------------------------


def ours(**changes) -> bytes:
    """A checkpoint whose header says something else, in JSON that no writer of ours would write."""
    values = {**HEADER, **changes}
    return tensors_file(STATE, {"hydrabench": json.dumps({key: v for key, v in values.items() if v != "gone"})})


def tensors_file(tensors, metadata) -> bytes:
    path = Path("scratch.safetensors")
    save_file(tensors, path, metadata=metadata)
    return path.read_bytes()


def edited(change) -> bytes:
    """A checkpoint after a change of the JSON that says where its tensors lie."""
    data = ours()
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def entry(name, **changes):
    return lambda table: table[name].update(changes)


def with_state(**changes) -> bytes:
    state = {**STATE, **{key.replace("_", "."): tensor for key, tensor in changes.items()}}
    return tensors_file({k: v for k, v in state.items() if v is not None}, {"hydrabench": json.dumps(HEADER)})


def compact(**changes) -> bytes:
    """A compact checkpoint after changes of its streams, or of the entries of its table."""
    network = build_model("cifar_model", SHAPE, 10, generator=torch.Generator().manual_seed(0))
    attach_masks(network, 0.1)
    bake_masks(network)
    header = Header.model_validate({**HEADER, "layout": "compact", "density": 0.1})
    save_checkpoint(Path("compact.safetensors"), state_of(network), header)
    from safetensors.torch import load_file

    streams = load_file("compact.safetensors")
    table = json.loads(zlib.decompress(streams["table"].numpy().tobytes()))
    table["tensors"][0][2] = changes.pop("shape", table["tensors"][0][2])
    table["tensors"][0][3] = changes.pop("kept", table["tensors"][0][3])
    table.update({key: changes.pop(key) for key in ("planes", "sha256") if key in changes})
    text = zlib.compress(changes.pop("text", json.dumps(table).encode()))
    streams["table"] = torch.from_numpy(np.frombuffer(bytearray(text), np.uint8))
    streams.update(changes)
    return tensors_file(streams, {"hydrabench": header.to_json()})


BRACKETS = b"[" * 5000 + b"]" * 5000
NOT_WHOLE = r"is not a whole safetensors file \(.*\); fetch or write it again"
UNREADABLE = r"has a header this version cannot read: "
OURS = {
    "nothing": (lambda: b"", NOT_WHOLE),
    "five bytes": (lambda: b"12345", NOT_WHOLE),
    "half a table": (lambda: ours()[:300], NOT_WHOLE),
    "half its tensors": (lambda: ours()[: len(ours()) // 2], NOT_WHOLE),
    "a byte too many": (lambda: ours() + b"x", NOT_WHOLE),
    "a table of 9 exabytes": (lambda: b"\xff" * 7 + b"\x7f" + ours()[8:], NOT_WHOLE),
    "a table that is no JSON": (lambda: struct.pack("<Q", 8) + b"{nonsens" + b"x" * 100, NOT_WHOLE),
    "a table that is a list": (lambda: struct.pack("<Q", 8) + b"{}[1, 2]", NOT_WHOLE),
    "5,000 brackets": (lambda: struct.pack("<Q", len(BRACKETS) + 6) + b'{"a": ' + BRACKETS, NOT_WHOLE),
    "offsets beyond the end": (lambda: edited(entry("7.weight", data_offsets=[0, 10**12])), NOT_WHOLE),
    "offsets that overlap": (lambda: edited(entry("7.weight", data_offsets=[0, 4000])), NOT_WHOLE),
    "offsets in reverse": (lambda: edited(entry("7.weight", data_offsets=[4000, 0])), NOT_WHOLE),
    "a shape of 10^10": (lambda: edited(entry("7.weight", shape=[10**10])), NOT_WHOLE),
    "a shape of 10^10 twice": (lambda: edited(entry("7.weight", shape=[10**10, 10**10])), NOT_WHOLE),
    "a negative shape": (lambda: edited(entry("7.weight", shape=[-10, 100])), NOT_WHOLE),
    "an unknown type": (lambda: edited(entry("7.weight", dtype="F31")), NOT_WHOLE),
    "no header": (lambda: tensors_file(STATE, None), "without a hydrabench header; it names no architecture"),
    "a header that is no JSON": (lambda: tensors_file(STATE, {"hydrabench": "{"}), UNREADABLE),
    "a header of 5,000 brackets": (lambda: tensors_file(STATE, {"hydrabench": BRACKETS.decode()}), UNREADABLE),
    "another version": (lambda: ours(schema="hydrabench.checkpoint/9"), UNREADABLE + "schema"),
    "a key too many": (lambda: ours(colour="red"), UNREADABLE + "colour"),
    "a key missing": (lambda: ours(arch="gone"), UNREADABLE + "arch"),
    "a key of two lines": (lambda: ours(**{"a\nb": 1}), r"cannot read: a b: unknown key, allowed are"),
    "a name of a megabyte": (lambda: with_state(**{"x" * 10**6: torch.ones(3)}), r"unexpected x{80}$"),
    "10^8 classes": (lambda: ours(num_classes=10**8), r"7\.weight has shape \(10, 100\), expected \(100000000, 100\)"),
    "10^18 classes": (lambda: ours(num_classes=10**18), UNREADABLE + "num_classes"),
    "no classes": (lambda: ours(num_classes=0), UNREADABLE + "num_classes"),
    "60,000 pixels a side": (lambda: ours(shape=[3, 60_000, 60_000]), r"5\.weight has shape \(100, 2048\), expected"),
    "10^10 pixels a side": (lambda: ours(shape=[3, 10**10, 10**10]), UNREADABLE + "shape"),
    "images without pixels": (lambda: ours(shape=[3, 0, 32]), UNREADABLE + "shape"),
    "an unknown network": (lambda: ours(arch="cifar_modell"), r"unknown architecture 'cifar_modell'; did you mean"),
    "density 10": (lambda: ours(density=10), UNREADABLE + "density"),
    "density NaN": (lambda: ours(density=math.nan), UNREADABLE + "density"),
    "layers that are not there": (lambda: ours(kept={"0": 5, "1": 5}), "kept by layer does not fit the network"),
    "a mean of NaN": (lambda: ours(normalization={"mean": [math.nan] * 3, "std": [1, 1, 1]}), UNREADABLE + "normal"),
    "grey levels": (lambda: ours(normalization={"mean": [125.3, 123, 113.9], "std": [63, 62.1, 66.7]}),
                    r"is in grey levels, images are in \[0, 1\]; divided by 255: mean \[0\.4914, 0\.4824, 0\.4467\]"),
    "a deviation of 0": (lambda: ours(normalization={"mean": [0, 0, 0], "std": [0, 1, 1]}), UNREADABLE + "normal"),
    "one channel of three": (lambda: ours(normalization={"mean": [0.5], "std": [1]}), "1 channels, the images have 3"),
    "a tensor missing": (lambda: with_state(**{"7_bias": None}), r"missing 7\.bias"),
    "a tensor too many": (lambda: with_state(more=torch.ones(3)), r"unexpected more"),
    "a NaN": (lambda: with_state(**{"7_bias": torch.full((10,), torch.nan)}), r"not finite .* in 7\.bias"),
    "complex numbers": (lambda: with_state(**{"7_bias": torch.ones(10, dtype=torch.complex64)}), r"in 7\.bias"),
    "compact: a shape of 10^10": (lambda: compact(shape=[10**10]), r"has shape \(10000000000,\), expected"),
    "compact: 10^12 values": (lambda: compact(shape=[10**12], kept=10**12), r"expected \(16, 3, 4, 4\)|does not fit"),
    "compact: more than there is room for": (lambda: compact(kept=769), r"which does not fit its 769 values"),
    "compact: a table of 32 MB": (lambda: compact(text=b" " * (1 << 25)), r"table does not end where it should"),
    "compact: no table": (lambda: compact(text=b"[]"), r"has a table this version cannot read"),
    "compact: other planes": (lambda: compact(planes={"float32": [10**9] * 4, "int8": [1]}), r"is damaged: its values"),
    "compact: another hash": (lambda: compact(sha256="0" * 64), r"checksum does not match"),
    "compact: values cut": (lambda: compact(values=torch.zeros(7, dtype=torch.uint8)), r"it holds 7 bytes of values"),
    "compact: places cut": (lambda: compact(unary=torch.zeros(7, dtype=torch.uint8)), r"is damaged: it holds 0 places"),
}  # fmt: skip


# Files of torch.save ---------------------------------------------------------------------------


def saved(values, *, zipped=True) -> bytes:
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def repacked(change, values=None, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip file of torch.save after a change of its members' bytes."""
    source, target = zipfile.ZipFile(io.BytesIO(saved(values or {"state_dict": STATE}))), io.BytesIO()
    members = {info.filename: source.read(info) for info in source.infolist()}
    change(members)
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def cut_storage(members):
    name = max((name for name in members if "/data/" in name), key=lambda name: len(members[name]))
    members[name] = members[name][:100]


def lengthen_numbers(members):
    """The classifier of 1000 elements says that it has 2^31 - 1."""
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = members[name].replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f")


def without(*names):
    def change(members):
        for name in [name for name in members if any(part in name for part in names)]:
            del members[name]

    return change


def large_storages() -> bytes:
    """20 tensors of 1.6 GB in a kilobyte: the numbers of elements in an old file's pickle."""
    data = saved([torch.zeros(1) for _ in range(20)], zipped=False)
    return data.replace(b"K\x01N", b"J\x00\x08\xaf\x2fN")


def storage_less(values) -> bytes:
    """The pickle of an old file with any content, behind its magic number."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(value, protocol=2) for value in (*head, values, []))


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rebuilt(offset, shape):
    """A view of a storage of three elements."""
    storage = torch.zeros(3).storage()
    return {"0.weight": Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, (1,), False, {})}


def zip_of(**members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def tar_of() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO(b""))
    return file.getvalue()


def circular():
    values = {"epoch": 3}
    values["model"] = values
    return values


def flipped() -> bytes:
    data = bytearray(saved({"state_dict": STATE}))
    data[len(data) // 2] ^= 255
    return bytes(data)


DAMAGED = r"is no file of torch\.save, or is damaged or cut short; fetch or write it again$"
CLAIMS = r"claims \d+ .*damaged"
CODE = r"can only be loaded by running code \([\w.]+\), which is refused"
NO_STATE = r"holds no state dict of tensors \(found: .*\)"
NP = np._core.multiarray.scalar  # numpy's own, of which only stand-ins are called
TORCH = {
    "nothing": (lambda: b"", r"is empty; fetch it again"),
    "a web page": (lambda: b"\n<!DOCTYPE html><title>Quota</title>", r"is a web page, not weights"),
    "text": (lambda: b"quota exceeded", DAMAGED),
    "zeros": (lambda: bytes(1000), DAMAGED),
    "half a zip": (lambda: saved({"state_dict": STATE})[:-50_000], DAMAGED),
    "half an old file": (lambda: saved({"state_dict": STATE}, zipped=False)[:-50_000], CLAIMS + "|" + DAMAGED),
    "only an old file's head": (lambda: saved({"state_dict": STATE}, zipped=False)[:200], CODE + "|" + DAMAGED),
    "a changed byte": (flipped, DAMAGED),
    "a zip of other things": (lambda: zip_of(readme="x"), r"is a zip without weights \(it holds readme\)"),
    "an empty zip": (zip_of, r"(?s)is a zip without weights|is no file of torch\.save"),
    "a program of TorchScript": (lambda: zip_of(net__data__x="", net__constants__="", net__data_pkl="")
                                 .replace(b"data_pkl", b"data.pkl"), r"is no file of torch\.save|TorchScript"),
    "a tar archive": (tar_of, r"is a tar archive, not weights; unpack it first"),
    "compressed": (lambda: repacked(lambda members: None, {"state_dict": {"0.weight": torch.zeros(10**6)}},
                                    zipfile.ZIP_DEFLATED), r"claims \d+ bytes of data and has \d+ itself"),
    "a storage cut": (lambda: repacked(cut_storage), r"claims \d+ elements of torch.float32 where it holds 100 bytes"),
    "a storage missing": (lambda: repacked(without("/data/0")), DAMAGED),
    "a storage of 8 GB": (lambda: repacked(lengthen_numbers), r"claims 2147483647 elements .* holds 4000 bytes"),
    "20 storages of 3 GB": (large_storages, r"claims \d+ bytes of tensors and has \d+ itself"),
    "a view beyond its storage": (lambda: saved(rebuilt(0, (10**9,)), zipped=False), DAMAGED),
    "a view beyond its storage, zipped": (lambda: saved(rebuilt(0, (10**9,))), DAMAGED),
    "a negative offset": (lambda: saved(rebuilt(-9, (3,)), zipped=False), DAMAGED),
    "one element for 10^10": (lambda: saved({"0.weight": torch.zeros(1).expand(10**10)}), NO_STATE),
    "sparse": (lambda: saved({"0.weight": torch.sparse_coo_tensor(torch.zeros(2, 0), [], (10**6, 10**6))}), NO_STATE),
    "on no device": (lambda: saved({"0.weight": torch.empty(10**9, device="meta")}), NO_STATE),
    "complex": (lambda: saved({**STATE, "7.bias": torch.ones(10, dtype=torch.complex64)}), r"not finite .* in 7\.bias"),
    "numbers": (lambda: saved([1, 2, 3]), NO_STATE),
    "numbers for names": (lambda: saved({0: torch.ones(3)}), NO_STATE),
    "no tensors": (lambda: saved({"state_dict": {"0.weight": 3}}), NO_STATE),
    "a circle": (lambda: saved(circular()), NO_STATE),
    "a command": (lambda: saved({"a": Calls(os.system, "touch proof")}), CODE),
    "an old file's command": (lambda: saved({"a": Calls(os.system, "touch proof")}, zipped=False), CODE),
    "a command in the head": (lambda: pickle.dumps(Calls(os.system, "touch proof"), protocol=2), CODE),
    "eval": (lambda: saved({"a": Calls(eval, "open('proof', 'w')")}), CODE),
    "numpy's loader": (lambda: saved({"a": Calls(np.load, "x")}), CODE),
    "numpy's memory maps": (lambda: saved({"a": Calls(np.memmap, "proof", "u1", "w+")}), CODE),
    "an object for a number": (lambda: storage_less(Calls(NP, np.dtype("O"), b"x")), DAMAGED),
    "a number of one byte": (lambda: storage_less(Calls(NP, np.dtype("f8"), b"x")), DAMAGED),
    "a text of 40 kB in one byte": (lambda: storage_less(Calls(NP, np.dtype("U9999"), b"x")), DAMAGED),
    "an array of numpy's by size": (lambda: storage_less(Calls(np.ndarray, (10**11,))), DAMAGED),
    "a storage by size": (lambda: storage_less(Calls(torch.FloatStorage, 10**12)), CODE + "|" + DAMAGED),
    "ten gigabytes of zeros": (lambda: saved({"0.weight": Calls(bytearray, 10**10)}), CODE),
    "a tensor by size": (lambda: saved({"0.weight": Calls(torch.FloatTensor, 10**12)}), CODE + "|" + DAMAGED),
    "a name of two lines": (lambda: saved({**STATE, "a\nb\x1b[31m": torch.ones(3)}), r"unexpected a b\?\[31m$"),
    "an entry of two lines": (lambda: saved({"a\nb": 1}), r"\(found: a b\)"),
    "a name of a megabyte": (lambda: saved({**STATE, "x" * 10**6: torch.ones(3)}), r"unexpected x{80}$"),
    "a member of two lines": (lambda: zip_of(**{"a\nb": "x"}), r"\(it holds a b\)"),
    "another network": (lambda: saved({"conv.weight": torch.ones(3, 3, 3, 3)}), r"missing 0\.weight"),
    "a mean of NaN": (lambda: saved({"0.mean": torch.full((3,), torch.nan), "0.std": torch.ones(3)}),
                      r"has a normalisation layer that images in \[0, 1\] cannot pass"),
    "a header of ours that lies": (lambda: saved({"state_dict": STATE, "hydrabench": json.dumps(
        {**HEADER, "num_classes": 10**8})}), r"expected \(100000000, 100\)"),
    "a header of ours that is none": (lambda: saved({"state_dict": STATE, "hydrabench": "{"}), UNREADABLE),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(path: Path, content: bytes, message: str, **given) -> None:
    """Opening the file is refused in one printable line, within seconds and with little memory, and nothing is run."""
    path.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(HydrabenchError, match=message) as error:
        open_ref(str(path), **given)
    text = str(error.value)
    assert path.name in text
    assert "\n" not in text
    assert len(text) < 1000
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB
    assert not Path("proof").exists()


@pytest.mark.parametrize("case", OURS)
def test_a_bad_file_of_ours_is_refused(case):
    make, message = OURS[case]
    refused(Path("x.safetensors"), make(), message)


@pytest.mark.parametrize("case", TORCH)
def test_a_bad_file_of_torch_save_is_refused(case):
    make, message = TORCH[case]
    refused(Path("x.pth.tar"), make(), message, **GIVEN)


def test_there_are_many_of_them():
    assert len(OURS) + len(TORCH) >= 80


def test_what_is_no_file_is_named(tmp_path):
    for ref, message in (
        ("gone.safetensors", r"no checkpoint at gone\.safetensors"),
        ("/dev/zero", r"no checkpoint at /dev/zero"),
        ("x" * 5000 + ".pt", r"no checkpoint at x{200} \(File name too long\)"),
        (".", r"holds no checkpoint\.safetensors; has its run finished"),
    ):
        with pytest.raises(HydrabenchError, match=message):
            open_ref(ref)


def test_a_file_larger_than_any_checkpoint_is_not_read():
    """A sparse file of 20 GB takes no room on the disk."""
    with Path("huge.safetensors").open("wb") as file:
        file.truncate(20 * 10**9)
    with pytest.raises(HydrabenchError, match=r"huge\.safetensors has 20 GB; no checkpoint has more than 16"):
        open_ref("huge.safetensors")


def test_a_file_that_does_not_fit_the_memory_is_one_line(monkeypatch):
    Path("x.safetensors").write_bytes(ours())

    def too_large(path):
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", too_large)
    with pytest.raises(HydrabenchError, match=r"x\.safetensors has 0 GB, more than the memory that is left"):
        open_ref("x.safetensors")
