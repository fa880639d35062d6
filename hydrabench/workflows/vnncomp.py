"""The command `vnncomp`: the instances of a VNN-COMP benchmark, decided one by one, in the competition's format."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import FrameType

import torch
from torch import Tensor

from hydrabench.bounds.exact.instances import PropertyVerdict, decide_property
from hydrabench.bounds.properties import read_property
from hydrabench.checkpoints.foreign.onnx_reader import OnnxNetwork, read_onnx
from hydrabench.documents import read_text
from hydrabench.errors import ConfigError, DataError, HydrabenchError, LedgerError
from hydrabench.files import close_name, write_text
from hydrabench.runtime import World, exact_arithmetic
from hydrabench.workflows.progress import say, tracking
from hydrabench.workflows.refusals import RESULTS, refuse_results
from hydrabench.workflows.writer import one_writer

ROW_LENGTH = 6  # of a row: category, network, property, seconds to prepare, answer, seconds to decide
ANSWERS = {"verified": "holds", "broken": "violated", "unknown": "unknown"}


@dataclass(frozen=True)
class Instance:
    """One line of an instances.csv. onnx, vnnlib: as it names them. timeout: seconds."""

    folder: Path
    onnx: str
    vnnlib: str
    timeout: float


class _OutOfTimeError(Exception):
    """The time of an instance is over."""


def run_instances(
    path: Path, out: Path, *, timeout: float | None = None, n: int | None = None, resume: bool = False
) -> dict[str, int]:
    """Decide the instances that a file names and return how often each answer came.

    `out` gets results.csv, a row an instance as the competition writes them, and under results/ a file for each with
    its answer and, of a violated property, the input that violates it with the network's output. An instance that
    cannot be read, or has an operation without a rule, is answered "error", with the reason on stderr.

    Args:
        timeout: seconds for each instance instead of those of the file. n: only the first n.
        resume: go on after the rows that `out` has.
    Raises: ConfigError or DataError if the file of instances cannot be read; LedgerError if `out` holds other rows.
    """
    instances = [one if timeout is None else replace(one, timeout=timeout) for one in read_instances(path)][:n]
    with one_writer(out, World()):
        rows = _kept(out / RESULTS, instances, resume=resume)
        with (
            exact_arithmetic(),
            TemporaryDirectory(prefix="hydrabench-") as scratch,
            tracking(f"vnncomp {path}", total=len(instances), done=len(rows), visible=True) as advance,
        ):
            for number, one in enumerate(instances[len(rows) :], start=len(rows)):
                row, text = _judged(one, Path(scratch), path.parent.resolve().name)
                write_text(out / "results" / f"{number:05d}-{Path(one.vnnlib).name}.txt", text)
                rows.append(row)
                write_text(out / RESULTS, _table(rows))
                advance(1, ", ".join(f"{name} {count}" for name, count in _counts(rows).items()))
    return _counts(rows)


def read_instances(path: Path) -> list[Instance]:
    """Read the lines of an instances.csv: network, property, seconds; paths relative to the file.

    Raises: DataError naming the line that is none.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; give the instances.csv of a benchmark{close_name(path)}")
    found = []
    for number, line in enumerate(csv.reader(read_text(path).splitlines()), start=1):
        parts = [part.strip() for part in line]
        if not any(parts):
            continue
        seconds = _positive(parts[2]) if len(parts) == 3 else None
        if seconds is None:
            raise DataError(f"{path}, line {number}: is not NETWORK.onnx,PROPERTY.vnnlib,SECONDS")
        found.append(Instance(path.parent, parts[0], parts[1], seconds))
    if not found:
        raise DataError(f"{path} names no instances")
    return found


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _kept(path: Path, instances: Sequence[Instance], *, resume: bool) -> list[list[str]]:
    """Return the rows that are done. Raises: LedgerError if they are about other instances, or there are any."""
    refuse_results(path, resume=resume)
    if not path.exists():
        return []
    rows = list(csv.reader(read_text(path).splitlines()))
    for row, one in zip(rows, instances, strict=False):
        if len(row) != ROW_LENGTH or row[1:3] != [one.onnx, one.vnnlib]:
            raise LedgerError(f"{path} has results of other instances ({', '.join(row[1:3])}); choose a new --out")
    return rows[: len(instances)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _counts(rows: Sequence[Sequence[str]]) -> dict[str, int]:
    return dict(sorted(Counter(row[4] for row in rows).items()))


def _judged(one: Instance, scratch: Path, category: str) -> tuple[list[str], str]:
    """Return the row of an instance, and what its file says."""
    started = perf_counter()
    decided, text = started, ""
    try:
        network = _network(_found(one.folder / one.onnx), scratch)
        cases = read_property(_text(_found(one.folder / one.vnnlib)))
        if cases[0].rows.shape[1] != network.module(_zero(network)).flatten(1).shape[1]:
            raise DataError(f"has {cases[0].rows.shape[1]} outputs, the network another number")
        if len(cases[0].lower) != _zero(network).numel():
            raise DataError(f"has {len(cases[0].lower)} inputs, the network {_zero(network).numel()}")
        decided = perf_counter()
        with _alarm(one.timeout):
            found = decide_property(network.module, network.input_shape, cases, one.timeout, network.runtime)
        answer = ANSWERS[found.verdict]
        if answer == "unknown" and perf_counter() - decided >= one.timeout:
            answer = "timeout"
        text = _witness(found, network)
    except _OutOfTimeError:
        answer = "timeout"
    except (HydrabenchError, ValueError, RuntimeError) as error:
        answer = "error"
        say(f"{one.onnx}, {one.vnnlib}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    ended = perf_counter()
    row = [category, one.onnx, one.vnnlib, f"{decided - started:.3f}", answer, f"{ended - decided:.3f}"]
    return row, f"{answer}\n{text}"


def _zero(network: OnnxNetwork) -> Tensor:
    return torch.zeros(1, *network.input_shape, dtype=network.dtype)


def _witness(found: PropertyVerdict, network: OnnxNetwork) -> str:
    """Write the input that violates a property, and onnxruntime's output, as the competition wants them."""
    if found.point is None:
        return ""
    output = network.runtime(found.point.view(1, *network.input_shape)).flatten().tolist()
    lines = [f"(X_{place} {value!r})" for place, value in enumerate(found.point.tolist())]
    lines += [f"(Y_{place} {value!r})" for place, value in enumerate(output)]
    return "({})\n".format("\n".join(lines))


def _found(path: Path) -> Path:
    """Return the file, or the compressed one beside it. Raises: DataError if there is neither."""
    for one in (path, path.with_name(f"{path.name}.gz")):
        if one.is_file():
            return one
    raise DataError(f"{path}: there is no such file")


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error


@lru_cache(maxsize=2)
def _network(path: Path, scratch: Path) -> OnnxNetwork:
    """Read a network; the next instances are often about the same."""
    if path.suffix != ".gz":
        return read_onnx(path)
    plain = scratch / path.stem
    try:
        with gzip.open(path) as packed, plain.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error})") from error
    return read_onnx(plain)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds, where the system has such a clock and this is the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # the search itself stops at `seconds`, with what it knows
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
