"""Read and check ledgers: incomplete ones, and ones made from other images, are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PositiveInt

from hydrabench.config import parse
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.evaluators import EVALUATORS, Evaluator, Metric, record_of, recorded_settings
from hydrabench.ledger import RUN_AGAIN, RunFolder, parse_record, whole_ledger
from hydrabench.reporting.inputs import refuse_mixed_inputs
from hydrabench.reporting.statistics import estimates
from hydrabench.selection import selected_indices
from hydrabench.threat import NORM_TEXTS, Threat, parse_radius

if TYPE_CHECKING:
    import pandas as pd

COMMANDS = ("attack", "certify")  # of the runs that are evaluations; the others train
IMPORTED = "imported"  # precision and mode of what was read from another tool's file


@dataclass(frozen=True)
class Origin:
    """The history of a network; None: not known, as of imports and of ledgers from before these fields.

    compact_bytes: size of its weights in a compact file, without zeros. recipe, seed: of its training. selection: the
    split that chose the epoch. parent: SHA-256 of the checkpoint that it started from. additional_data: whether it was
    trained on images that are not in the data set.
    """

    compact_bytes: int | None = None
    recipe: str | None = None
    seed: int | None = None
    selection: str | None = None
    parent: str | None = None
    additional_data: bool | None = None


@dataclass(frozen=True)
class EvaluatedNetwork:
    """The evaluated network; None: not known.

    density: fraction of weights kept. bytes: size of its file. phase: of the training that made it, "lwm" for
    least-weight-magnitude pruning. Other fields: see `Origin`.
    """

    name: str
    sha256: str
    arch: str
    objective: str
    density: float | None
    parameters: int | None
    nonzero_parameters: int | None
    bytes: int | None
    phase: str | None = None
    compact_bytes: int | None = None
    recipe: str | None = None
    seed: int | None = None
    selection: str | None = None
    parent: str | None = None
    additional_data: bool | None = None

    @property
    def size(self) -> int | None:
        """Bytes of the compact file where it is known, else of the file that was judged."""
        return self.bytes if self.compact_bytes is None else self.compact_bytes


@dataclass(frozen=True, order=True)
class ImageSelection:
    """`n` images of one split of a data set: the first ones, unless `chosen` says which."""

    name: str
    split: str
    n: PositiveInt
    chosen: str = ""

    def __str__(self) -> str:
        if not self.n:  # of numbers whose source does not say how many
            return f"{self.name} {self.split}"
        if self.chosen:
            return f"{self.name} {self.split}, {self.n:,} image{'s' * (self.n > 1)} ({self.chosen})"
        return f"{self.name} {self.split}, first {f'{self.n:,} images' if self.n > 1 else 'image'}"

    @property
    def size(self) -> str:
        """The number of images, and which ones unless they are the first."""
        return f"{self.n} ({self.chosen})" if self.chosen else str(self.n)


@dataclass(frozen=True)
class RunHeader:
    """The part of an evaluation's `run.json` that is checked; the field names are its keys."""

    checkpoint: EvaluatedNetwork
    dataset: ImageSelection
    precision: str
    protocol: str
    settings: dict[str, Any]
    origin: Origin = Origin()
    peak_memory: int | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One complete ledger.

    path: of the run folder, or of the file that was imported.
    fields: an array of one value an image for each field of the records, sorted by index; of the first images, value i
        is about image i.
    metrics: what each image contributes to each number.
    peak_memory: bytes that the run took at most, None: not known.
    flags: of an attack, the signs that its number may be too high, see `evaluators.flags`.
    """

    path: Path
    checkpoint: EvaluatedNetwork
    images: ImageSelection
    precision: str
    kind: str
    protocol: str
    settings: dict[str, Any]
    fields: Mapping[str, np.ndarray[Any, Any]]
    metrics: Mapping[str, Metric]
    peak_memory: int | None = None
    flags: Mapping[str, float] = field(default_factory=dict)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records, made anew from `fields`."""
        columns = [values.tolist() for values in self.fields.values()]
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*columns, strict=True)]

    @property
    def frame(self) -> pd.DataFrame:
        """The records as a table, one row an image."""
        import pandas as pd

        return pd.DataFrame(dict(self.fields))

    @property
    def right(self) -> np.ndarray[Any, Any]:
        """True where the prediction is the label."""
        return np.asarray(self.fields["prediction"] == self.fields["label"])

    @property
    def threat(self) -> Threat | None:
        """The ball that is attacked or bounded; None for clean accuracy and for smoothing."""
        if "epsilon" not in self.settings:
            return None
        norm = self.settings["norm"]
        return Threat(norm, parse_radius(self.settings["epsilon"], norm=norm))

    @property
    def evaluator(self) -> Evaluator:
        """Return the description of this evaluator."""
        return EVALUATORS[self.kind]


def as_evaluation(
    path: Path, header: RunHeader, records: Sequence[Mapping[str, Any]], *, checkpoint: EvaluatedNetwork | None = None
) -> Evaluation:
    """Make an evaluation of records that are sorted by index; at least one.

    Args: checkpoint: that of the header unless given.
    """
    settings = header.settings
    evaluator = EVALUATORS[settings["kind"]]
    return Evaluation(
        path,
        checkpoint or header.checkpoint,
        header.dataset,
        header.precision,
        settings["kind"],
        header.protocol,
        settings,
        {name: _array([record[name] for record in records]) for name in records[0]},
        evaluator.metrics(records, evaluator.read(settings)),
        header.peak_memory,
    )


def _array(values: list[Any]) -> np.ndarray[Any, Any]:
    """Return values of one type as an array of that type, any others as objects, so that `tolist` gives them back."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and kinds <= {bool, int, float}:
        return np.array(values)
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def read_evaluations(runs: Sequence[RunFolder]) -> list[Evaluation]:
    """Read the evaluations among `runs`, sorted by path; training runs are skipped.

    Raises: LedgerError, naming the run folder and the remedy, if there is no evaluation, a ledger is
        incomplete or damaged, its summary is missing or says something else, or two ledgers hold
        different pixels or labels for the same image.
    """
    chosen = sorted((run for run in runs if run.header.get("command") in COMMANDS), key=lambda run: str(run.path))
    if not chosen:
        raise LedgerError(
            f"no evaluation among {len(runs)} run folder{'s' * (len(runs) != 1)}; "
            "make one with hydrabench attack or hydrabench certify"
        )
    evaluations = [read_evaluation(run) for run in chosen]
    refuse_mixed_inputs(evaluations)
    return evaluations


def read_evaluation(run: RunFolder) -> Evaluation:
    """Read one run of `attack` or `certify`. Raises: LedgerError as `read_evaluations` does."""
    if not run.is_complete:
        gone = "".join(f", {name} is gone" for name in run.lost()) if run.header.get("status") == "complete" else ""
        raise LedgerError(
            f"{run.path} is not complete (status {run.header.get('status')!r}{gone}); "
            "continue it with --resume, or leave it out"
        )
    if not isinstance(run.header.get("dataset"), dict):
        raise LedgerError(f"{run.path / 'run.json'}: dataset is {shortened(run.header.get('dataset'))}; {RUN_AGAIN}")
    if "indices" in run.header["dataset"]:
        raise LedgerError(
            f"{run.path} holds images that were chosen one by one (--index), which are no sample of the data set; "
            "leave it out"
        )
    header = _checked_header(run)
    run.require_intact()
    settings = recorded_settings(header.settings, header.protocol)
    kind = record_of(settings)
    records = whole_ledger(run, _indices(run), kind)
    if run.keeps_examples:
        parsed = [parse_record(record, kind) for record in records]
        plain = settings.plain()
        run.examples.require_images([one.index for one in parsed if one.example_within(plain) is not None])
    found = as_evaluation(run.path, header, records, checkpoint=_with_origin(header))
    _refuse_other_summary(run, found)
    return replace(found, flags=_flags(run))


def _flags(run: RunFolder) -> dict[str, float]:
    """The flags in a summary. Raises: LedgerError if they are none."""
    flags = run.summary().get("flags", {})
    if not isinstance(flags, dict) or not all(isinstance(one, int | float) and 0 < one <= 1 for one in flags.values()):
        raise LedgerError(f"{run.path / 'summary.json'}: flags is {shortened(flags)}; {RUN_AGAIN}")
    return flags


def _with_origin(header: RunHeader) -> EvaluatedNetwork:
    """Return the network with what `origin` says of it."""
    return replace(header.checkpoint, **vars(header.origin))


def _checked_header(run: RunFolder) -> RunHeader:
    """Check all of the header that the leaderboard relies on."""
    source = str(run.path / "run.json")
    try:
        header = parse(RunHeader, run.header, source)
        _check_settings(header.settings)
        recorded_settings(header.settings, header.protocol, f"{source}: settings")
    except ConfigError as error:
        place = "" if str(error).startswith(source) else f"{source}: settings."
        raise LedgerError(f"{place}{error}; {RUN_AGAIN}") from error
    return header


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises: ConfigError naming the first setting that is missing or not known to this version."""
    kind, norm = settings.get("kind"), settings.get("norm", "linf")
    for name, value, known in (("kind", kind, sorted(EVALUATORS)), ("norm", norm, list(NORM_TEXTS))):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}, this version reads {', '.join(known)}")
    for name in EVALUATORS[str(kind)].needed():
        if name not in settings:
            raise ConfigError(f"{name}: is required")
    if "epsilon" in settings:
        parse_radius(settings["epsilon"], norm=norm)


def _indices(run: RunFolder) -> Sequence[int]:
    """The images that a run selects. Raises: LedgerError if `run.json` contradicts itself."""
    try:
        return selected_indices(run.header["dataset"])
    except ValueError as error:
        raise LedgerError(f"{run.path / 'run.json'}: {error}; {RUN_AGAIN}") from error


def _refuse_other_summary(run: RunFolder, evaluation: Evaluation) -> None:
    """Raise if the summary disagrees with the records, from which the table is made: one of them was altered."""
    summary = run.summary()
    for metric, found in estimates(evaluation.metrics).items():
        value = _number(summary, "metrics", metric, "value")
        if value is None or not math.isclose(value, found.value, abs_tol=1e-9):
            raise LedgerError(
                f"{run.path / 'summary.json'} says {metric} = {value} but records.jsonl gives "
                f"{found.value:.6g}; one was altered, {RUN_AGAIN}"
            )


def _number(value: Any, *keys: str) -> float | None:
    """The number at `keys` in nested JSON objects, None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None
