"""Certificates in the format of Cohen's tools: a table of six columns, separated by tabs, one line per image.

`idx label predict radius correct time`: index in the data set, true class, smoothed prediction (-1: abstained), L2
radius in pixel units (0.0 if abstained), 1 or 0, and H:MM:SS.ffffff. So write `certify.py` of locuslab/smoothing
and the tools made from it, some with more columns, which are ignored here. Such a table does not say which network
and data set it is about, nor how it was made; the options of the import do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hydrabench.config import parse
from hydrabench.config.fields import Density, Section
from hydrabench.config.protocol import unless
from hydrabench.documents import read_text
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.evaluators.smoothing_settings import DEFAULT_RADII
from hydrabench.ledger import ABSTAIN
from hydrabench.reporting.evaluations import (
    IMPORTED,
    EvaluatedNetwork,
    Evaluation,
    ImageSelection,
    RunHeader,
    as_evaluation,
)
from hydrabench.reporting.external import Imported
from hydrabench.selection import selection_name

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")

EXACT_DIGITS = 9  # a radius with as many significant digits is as good as exact
EXAMPLE = "logs/sigma_0.25,name=resnet110,dataset=cifar10,sigma=0.25"
_TIME = re.compile(r"(?:(\d{1,9}) days?, )?(\d{1,9}):(\d\d):(\d\d(?:\.\d+)?)|(\d{1,12}(?:\.\d+)?)")


class Described(Section):
    """What the table does not say. n0, samples, alpha: None if not known; radii: at which to count certificates."""

    name: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    sigma: PositiveFloat
    split: str = "test"
    n0: PositiveInt | None = None
    samples: PositiveInt | None = None
    alpha: float | None = Field(None, gt=0, lt=1)
    radii: tuple[NonNegativeFloat, ...] = DEFAULT_RADII
    arch: str = "unknown"
    objective: str = "unknown"
    density: Density | None = None

    @property
    def protocol(self) -> str:
        """Never a protocol of our own runs; if a setting is unknown, one of this name alone, compared with nothing."""
        if None in (self.n0, self.samples, self.alpha):
            return f"smoothing-{IMPORTED}-{self.name}@1"
        spelt = unless(100, "n0_", self.n0 or 0) + unless(100_000, "n", self.samples or 0)
        return f"smoothing-{IMPORTED}{spelt}{unless(0.001, 'a', self.alpha or 0)}@1"


@dataclass(frozen=True)
class _Line:
    """One line of a table. digits: significant ones of the radius; decimals: those after its point."""

    number: int
    values: dict[str, Any]
    digits: int
    decimals: int


def table_text(evaluation: Evaluation) -> str:
    """Write a smoothing run as a table; one of mode "predict" without the column `radius`, as `predict.py` does."""
    predicted = evaluation.settings.get("mode") == "predict"
    columns = [column for column in COLUMNS if not (predicted and column == "radius")]
    lines = ["\t".join(columns)]
    for record in evaluation.records:
        values = {
            "idx": record["index"],
            "label": record["label"],
            "predict": ABSTAIN if record["abstain"] else record["prediction"],
            "radius": repr(float(record["radius"])),
            "correct": int(not record["abstain"] and record["prediction"] == record["label"]),
            "time": _clock(record["seconds"]),
        }
        lines.append("\t".join(str(values[column]) for column in columns))
    return "\n".join(lines) + "\n"


def table_names(evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """A file name for each smoothing run, in their order. Raises: LedgerError if there is none."""
    found: dict[str, Evaluation] = {}
    for evaluation in evaluations:
        if evaluation.evaluator.claims != "smoothed":
            continue
        parts = (evaluation.checkpoint.name, evaluation.protocol, f"sigma{evaluation.settings['sigma']:g}")
        base = re.sub(r"[^\w.+-]+", "-", "-".join(parts))
        used = sum(name == f"{base}.tsv" or name.startswith(f"{base}~") for name in found)
        found[f"{base}~{used + 1}.tsv" if used else f"{base}.tsv"] = evaluation
    if not found:
        raise LedgerError("--format tsv writes smoothing runs, and there is none; make one with certify")
    return found


def read_tables(text: str) -> Imported:
    """Read what `--import cohen TEXT` names. Raises: as `read_table`."""
    return Imported((read_table(text),))


def read_table(text: str) -> Evaluation:
    """Read a table of certificates.

    Args: text: its path and what it does not say, as in `EXAMPLE`; the keys are the fields of `Described`.
    Returns: an evaluation without pixel hashes. A radius that is printed with few digits counts as the least that
        rounds to it, because a certificate must not grow by rounding.
    Raises: ConfigError if the text is not complete, LedgerError naming file, line and value if the table is wrong.
    """
    path, described = _described(text)
    lines = _lines(path)
    _refuse_repeated(path, lines)
    lines.sort(key=lambda line: line.values["idx"])
    digits, decimals = max(line.digits for line in lines), max(line.decimals for line in lines)
    indices = [line.values["idx"] for line in lines]
    settings = described.model_dump(mode="json", include={"sigma", "n0", "samples", "alpha", "radii"})
    # Not a hash: rows of one name are one network, and never the one of a checkpoint that we know.
    sha256 = f"{IMPORTED}:{described.name}"
    network = EvaluatedNetwork(
        described.name, sha256, described.arch, described.objective, described.density, None, None, None
    )
    images = ImageSelection(described.dataset, described.split, len(lines), selection_name(indices))
    about = {"kind": "smoothing", "mode": IMPORTED, **settings}
    header = RunHeader(network, images, IMPORTED, described.protocol, about)
    return as_evaluation(path, header, [_record(line.values, digits, decimals) for line in lines])


def _described(text: str) -> tuple[Path, Described]:
    """Split PATH,key=value,... ; only what looks like a key counts as one, so paths may hold commas."""
    path, *pairs = re.split(r",(?=[a-z]\w*=)", text)
    values: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    if "radii" in values:
        values["radii"] = values["radii"].split("+")
    try:
        return Path(path), parse(Described, values, f"--import {path}")
    except ConfigError as error:
        raise ConfigError(f"{error}; write for example --import cohen {EXAMPLE}") from error


def _lines(path: Path) -> list[_Line]:
    try:
        rows = read_text(path).splitlines()
    except (OSError, ConfigError) as error:
        raise LedgerError(f"{path} cannot be read as a table: {error}") from error
    head = rows[0].split("\t") if rows else []
    missing = [column for column in COLUMNS if column not in head]
    if missing:
        hint = "; that of predict.py certifies nothing" if missing == ["radius"] else ""
        raise LedgerError(
            f"{path}, line 1, should name the columns {' '.join(COLUMNS)}, separated by tabs, and lacks "
            f"{' '.join(missing)}{hint}"
        )
    lines = [_line(path, number, head, row) for number, row in enumerate(rows[1:], start=2) if row.strip()]
    if not lines:
        raise LedgerError(f"{path} holds no line with an image")
    return lines


def _line(path: Path, number: int, head: Sequence[str], row: str) -> _Line:
    """Check one line. Raises: LedgerError naming it."""

    def refuse(problem: str) -> LedgerError:
        return LedgerError(f"{path}, line {number}: {problem}; correct the file, or leave it out")

    fields = row.split("\t")
    if len(fields) != len(head):
        raise refuse(f"has {len(fields)} fields, the first line names {len(head)}")
    texts = {name: field.strip() for name, field in zip(head, fields, strict=True)}
    values: dict[str, Any] = {}
    for name, least in (("idx", 0), ("label", 0), ("predict", ABSTAIN), ("correct", 0)):
        if not re.fullmatch(r"-?\d{1,12}", texts[name]) or int(texts[name]) < least:
            raise refuse(f"{name} is {shortened(texts[name])}, which should be a whole number from {least} on")
        values[name] = int(texts[name])
    mantissa = re.fullmatch(r"(\d+)(?:\.(\d*))?(?:[eE]([+-]?\d{1,4}))?", texts["radius"])
    if mantissa is None:
        raise refuse(f"radius is {shortened(texts['radius'])}, which should be a number, at least 0")
    whole, decimals, exponent = mantissa[1], mantissa[2] or "", int(mantissa[3] or 0)
    values["radius"] = float(texts["radius"])
    if not math.isfinite(values["radius"]):
        raise refuse(f"radius is {shortened(texts['radius'])}, which is not finite")
    elapsed = _TIME.fullmatch(texts["time"])
    if elapsed is None:
        raise refuse(f"time is {texts['time']!r}, which should be H:MM:SS or a number of seconds")
    days, hours, minutes, seconds, plain = (float(part or 0) for part in elapsed.groups())
    values["seconds"] = days * 86400 + hours * 3600 + minutes * 60 + seconds + plain
    if values["correct"] != int(values["predict"] == values["label"]):
        raise refuse(f"correct is {values['correct']}, but predict is {values['predict']} and label {values['label']}")
    if values["predict"] == ABSTAIN and values["radius"] > 0:
        raise refuse(f"predict is {ABSTAIN}, an abstention, but radius is {texts['radius']}")
    return _Line(number, values, len((whole + decimals).lstrip("0")), max(0, len(decimals) - exponent))


def _refuse_repeated(path: Path, lines: Sequence[_Line]) -> None:
    seen: dict[int, _Line] = {}
    for line in lines:
        first = seen.setdefault(line.values["idx"], line)
        if first is not line:
            other = first.values["label"] != line.values["label"]
            raise LedgerError(
                f"{path}, line {line.number}: idx {line.values['idx']} stands on line {first.number} already"
                f"{', with another label' * other}; correct the file, or leave it out"
            )


def _record(values: dict[str, Any], digits: int, decimals: int) -> dict[str, Any]:
    """A line as a record of our ledgers."""
    return {
        "index": values["idx"],
        "input_sha": None,
        "label": values["label"],
        "prediction": values["predict"],
        "seconds": values["seconds"],
        "radius": least_radius(values["radius"], digits, decimals),
        "abstain": values["predict"] == ABSTAIN,
    }


def least_radius(radius: float, digits: int, decimals: int) -> float:
    """The least radius that is printed as `radius`.

    Args: digits, decimals: the most significant digits, and digits after the point, of any radius in the file; it may
        print either all with as many of the one (`%.3g`) or of the other (`%.4f`), without zeros at the end.
    """
    if digits >= EXACT_DIGITS or radius == 0:
        return radius
    unit = max(10.0 ** (math.floor(math.log10(radius)) - digits + 1), 10.0**-decimals)
    return max(0.0, radius - unit / 2)


def _clock(seconds: float) -> str:
    """Write a time as H:MM:SS.ffffff."""
    whole, fraction = divmod(round(timedelta(seconds=seconds) / timedelta(microseconds=1)), 1_000_000)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{fraction:06d}"
