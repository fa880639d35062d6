"""Run folders: `run.json` says what was asked, `records.jsonl` holds one record per image, `summary.json` the result.

A ledger grows by whole blocks of images, in the order of the selection, and is flushed to the disk
after each. A run that was killed therefore holds some whole blocks and at most one torn one, which
`RunFolder.keep_whole_blocks` drops. Nothing here knows about tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydrabench.documents import parse_json, read_json, read_text
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.files import SCRATCH, write_json
from hydrabench.plugins import loaded, require

RUN_SCHEMA = "hydrabench.run/1"
LEDGER_BYTES = 1 << 34
SUMMARY_SCHEMA = "hydrabench.summary/1"
# What may differ between the first start of a run and its continuation.
VOLATILE = frozenset({"started", "ended", "status", "environment", "world_size", "micro_batch"})


@dataclass(frozen=True)
class Record:
    """What every evaluator says about one image.

    index: position in the data set's split. input_sha: SHA-256 of the [0, 1] float32 pixels.
    label, prediction: classes; the prediction is that of the evaluated classifier on the clean image
    (of the smoothed classifier for smoothing, -1 if it abstains). seconds: never compared.
    """

    index: int
    input_sha: str
    label: int
    prediction: int
    seconds: float


@dataclass(frozen=True)
class AttackRecord(Record):
    """`robust` if no attack changed the prediction; otherwise which one did, after how many steps.

    broken_by: "clean" if the clean image is misclassified already, else the attack's name. step: the
    iterations done when it broke, None where the attack does not tell. margin: smallest margin seen.
    """

    robust: bool
    broken_by: str | None
    step: int | None
    margin: float | None


@dataclass(frozen=True)
class VerifiedRecord(Record):
    """`verified` if `lower`, the lower bound of the margin over the whole ball, is positive.

    A cascade bounds images that are misclassified, or that one step of an attack breaks, by intervals alone.
    method: which method of a cascade proved it; None if none did, and where only one was asked. rechecked: whether
    rounding could have turned the verdict in float32, or lifted the bound of a misclassified image above 0, so that
    `lower` is what float64 gave.
    """

    verified: bool
    lower: float
    method: str | None = None
    rechecked: bool = False


@dataclass(frozen=True)
class SmoothedRecord(Record):
    """A certificate of the smoothed classifier: `count` of `samples` noisy copies fell on the selected class.

    selected: class chosen by the selection samples (with the most votes, for `predict`). p_lower: lower
    confidence bound of its probability, less what integer noise costs. radius: certified L2 radius in pixel
    units, 0 if abstained. Ledgers from before the other fields hold Cohen's mode.

    mode: when sampling stopped, as in the settings. selection, counts: votes of all classes among the selection
    and the estimation samples. looks: [draws, count] each time the rule looked. alpha_spent: failure probability
    used up by them. skipped: nothing was estimated, because the selection picked another class than the label.
    radius_linf: the L∞ radius that the L2 one implies, radius / sqrt(C * H * W). p_value: of `predict` only.
    """

    selected: int
    count: int
    samples: int
    p_lower: float
    radius: float
    abstain: bool
    mode: str = "cohen"
    selection: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    looks: list[list[int]] = field(default_factory=list)
    alpha_spent: float | None = None
    skipped: bool = False
    radius_linf: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class ReuseRecord(SmoothedRecord):
    """A certificate derived from that of a parent network, see `smoothing.reuse`; mode is "reused".

    `samples` noisy copies were shown to both networks, `count` of them fell on `selected`, the parent's class, for
    both; counts: the same for all classes. looks: [draws, lost] each time; lost: votes of the parent for `selected`
    that the child did not give; disagreements: all draws on which the two differ.
    parent_looks: [draws, count] of the parent's ledger; parent_p_lower: its bound at level alpha_parent; alpha_lost
    goes to the lost votes and alpha_direct to certifying directly (0: never done). passes: forward passes spent, the
    parent's and those of a direct certificate included. certificate: "reused", "direct" if that one is better (the
    fields of `SmoothedRecord` then mean what they mean there), or "none": the parent abstains, so nothing was drawn.
    """

    parent_looks: list[list[int]] = field(default_factory=list)
    parent_p_lower: float = 0.0
    alpha_parent: float = 0.0
    alpha_lost: float = 0.0
    alpha_direct: float = 0.0
    lost: int = 0
    disagreements: int = 0
    passes: int = 0
    certificate: str = "none"


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class RunFolder:
    """One folder that one run writes. `open_run` makes or continues it, `read_run` reads it."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header

    @property
    def records_path(self) -> Path:
        """The ledger of this run."""
        return self.path / "records.jsonl"

    @property
    def is_complete(self) -> bool:
        """Whether the run ended well."""
        return bool(self.header.get("status") == "complete")

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records in file order. Raises: LedgerError if a line is not a record."""
        try:
            lines = read_text(self.records_path, LEDGER_BYTES).splitlines()
        except (FileNotFoundError, ConfigError) as error:
            raise LedgerError(f"{self.records_path} is missing or damaged: {error}") from error
        for number, line in enumerate(lines, start=1):
            yield _parse(line, self.records_path, number)

    def append(self, block: Sequence[Record]) -> None:
        """Add the records of one block in one write, and wait until they are on the disk."""
        text = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in block)
        with self.records_path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def keep_whole_blocks(self, blocks: Sequence[Sequence[int]]) -> int:
        """Cut the ledger back to its whole blocks and return how many there are.

        Args:
            blocks: the data-set indices of each block, in the order in which they are written.
        Raises: LedgerError if the ledger holds other images than these.
        """
        if not self.records_path.exists():
            return 0
        raw = self.records_path.read_bytes()
        lines = raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)
        whole, used = 0, 0
        while whole < len(blocks) and used + len(blocks[whole]) <= len(lines):
            for line, index in zip(lines[used : used + len(blocks[whole])], blocks[whole], strict=True):
                if _parse(line.decode(), self.records_path, used + 1)["index"] != index:
                    raise LedgerError(
                        f"{self.records_path} holds other images than this command selects; choose a new --out"
                    )
            used += len(blocks[whole])
            whole += 1
        with self.records_path.open("r+b") as file:
            file.truncate(sum(map(len, lines[:used])))
        return whole

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` and mark the run complete."""
        write_json(self.path / "summary.json", {"schema": SUMMARY_SCHEMA, **summary})
        self.header |= {"status": "complete", "ended": now()}
        write_json(self.path / "run.json", self.header)

    def summary(self) -> dict[str, Any]:
        """Read `summary.json`. Raises: LedgerError if it is not there or not readable."""
        return _read_json(self.path / "summary.json")


def open_run(path: Path, header: Mapping[str, Any], *, resume: bool) -> RunFolder:
    """Start the run that `header` describes in `path`, or continue it.

    Args:
        path: the run folder; made if it does not exist.
        header: everything that `run.json` says; all but `VOLATILE` must be unchanged on resume.
        resume: continue what `path` holds; a folder that holds nothing yet is simply started.
    Raises: LedgerError if `path` holds a run and `resume` is false, or holds a different run.
    """
    header = {"schema": RUN_SCHEMA, **header}
    if used := loaded():
        header["plugins"] = used
    found = find_run(path, resume=resume)
    if found is None:
        run = RunFolder(path, {**header, "started": now(), "status": "running"})
        write_json(path / "run.json", run.header)
        return run
    changed = _differences(found.header, json.loads(json.dumps(header)))
    if changed:
        raise LedgerError(
            f"cannot resume {path}: {'; '.join(changed)}; keep the values it was started with, or choose a new --out"
        )
    for scratch in path.glob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)
    return found


def find_run(path: Path, *, resume: bool) -> RunFolder | None:
    """Return the run that `path` holds, to be continued, or None if one can be started there; writes nothing.

    Raises: LedgerError if `path` is in use: holds a run and `resume` is false, holds other files, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise LedgerError(f"{path} is a file; --out names a folder")
    if not (path / "run.json").exists():
        strangers = sorted(path.glob("[!.]*"))
        if strangers:
            raise LedgerError(f"{path} is no run folder but holds {strangers[0].name}; choose a new --out")
        return None
    found = read_run(path)
    if not resume:
        raise LedgerError(f"{path} already holds a run; continue it with --resume or choose a new --out")
    return found


def read_run(path: Path) -> RunFolder:
    """Read the header of a run folder.

    Raises: LedgerError if it is none, or of an unknown schema; ConfigError naming a plugin that it needs.
    """
    if not (path / "run.json").is_file():
        raise LedgerError(f"{path} is not a run folder: it holds no run.json")
    header = _read_json(path / "run.json")
    if header.get("schema") != RUN_SCHEMA:
        raise LedgerError(
            f"{path / 'run.json'} has schema {shortened(header.get('schema'))}; this version reads {RUN_SCHEMA!r}"
        )
    require(header.get("plugins", ()), str(path))
    return RunFolder(path, header)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which values of two headers differ, with their dotted paths."""
    found = []
    for key in sorted(set(old) | set(new)):
        if not prefix and key in VOLATILE:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {_short(before)} and is now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise LedgerError(f"{path} does not exist; the run has not finished, continue it with --resume") from error
    except ConfigError as error:
        raise LedgerError(str(error)) from error
    if not isinstance(value, dict):
        raise LedgerError(f"{path} does not hold a JSON object")
    return value


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number},"
    try:
        record = parse_json(line, f"{where} is not a record:")
    except ConfigError as error:
        raise LedgerError(f"{error}; continue the run with --resume") from error
    index = record.get("index") if isinstance(record, dict) else None
    if not isinstance(index, int) or isinstance(index, bool):
        raise LedgerError(f"{where} is not a record of an image")
    return record  # type: ignore[no-any-return]


def finite(value: float) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
