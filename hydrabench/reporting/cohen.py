"""Certificates in the format of Cohen's tools: a table of six columns, separated by tabs, one line per image.

`idx label predict radius correct time`: index in the data set, true class, smoothed prediction (-1: abstained), L2
radius in pixel units (0.0 if abstained), 1 or 0, and H:MM:SS.ffffff. So write `certify.py` of locuslab/smoothing
and the tools made from it, some with more columns, which are ignored here; `predict.py` writes no radius. No metric
needs `correct` and `time`, so they may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hydrabench.documents import read_text
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.ledger import ABSTAIN
from hydrabench.reporting.evaluations import Evaluation

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
NEEDED = ("idx", "label", "predict")
OF_ATTACKS = "basePredict"  # a column of the logs of attacks, whose predictions are not those of the clean images

EXACT_DIGITS = 9  # a radius with as many significant digits is as good as exact
_TIME = re.compile(r"(?:(\d{1,9}) days?, )?(\d{1,9}):(\d\d):(\d\d(?:\.\d+)?)|(\d{1,12}(?:\.\d+)?)")
_RADIUS = re.compile(r"(\d+)(?:\.(\d*))?(?:[eE]([+-]?\d{1,4}))?", re.ASCII)
_CLOCK = (0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13)  # where the digits of "0:00:12.500000" stand

_LENGTHS = set(range(1, 13))  # of whole numbers
Values = np.ndarray[Any, Any]


class NoCertificates(LedgerError):
    """A file that holds no certificate. why: in a few words that stand for many files."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a table, sorted by index.

    printed: radii as printed, NaN in a table of predictions. digits, decimals: the most significant digits, and digits
    after the point, of any radius.
    """

    index: Values
    label: Values
    predict: Values
    printed: Values
    seconds: Values
    digits: int
    decimals: int

    @property
    def certifies(self) -> bool:
        """True if it has radii."""
        return not bool(np.isnan(self.printed).any())

    def radius(self) -> Values:
        """The least radii that are printed so."""
        unique, places = np.unique(self.printed, return_inverse=True)
        return np.array([least_radius(value, self.digits, self.decimals) for value in unique.tolist()])[places]


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


def read_table(path: Path) -> Table:
    """Read a table.

    Raises: NoCertificates if it has no line, or is a log of attacks; LedgerError naming file, line and value if it is
        wrong.
    """
    rows = _rows(path)
    head = rows[0].split("\t")
    body = [row for row in rows[1:] if row.strip()]
    if not body:
        raise NoCertificates(f"{path} holds no line with an image", "have no line with an image")
    fields = [row.split("\t") for row in body]
    found = _quickly(head, fields) if all(len(one) == len(head) for one in fields) else None
    return found if found is not None else _line_by_line(path, head, rows)


def _rows(path: Path) -> list[str]:
    """Return the lines of a table whose first one names what is needed."""
    try:
        rows = read_text(path).splitlines()
    except (OSError, ConfigError) as error:
        raise NoCertificates(f"{path} cannot be read as a table: {error}", "are no tables") from error
    head = rows[0].split("\t") if rows else []
    if missing := [column for column in NEEDED if column not in head]:
        raise NoCertificates(
            f"{path}, line 1, should name the columns {' '.join(COLUMNS)}, separated by tabs, and lacks "
            f"{' '.join(missing)}",
            "are no tables",
        )
    if OF_ATTACKS in head:
        problem = f"{path} is a log of attacks, which certifies nothing; leave it out"
        raise NoCertificates(problem, "are logs of attacks")
    return rows


def _quickly(head: Sequence[str], fields: Sequence[Sequence[str]]) -> Table | None:
    """Read lines of the usual form column by column; None if any is not, so that they are read one by one."""
    texts = dict(zip(head, map(list, zip(*fields, strict=True)), strict=True))
    if not _are_whole(texts):
        return None
    radii = _radii(texts["radius"]) if "radius" in texts else (np.full(len(fields), np.nan), 0, 0)
    seconds = _seconds(texts["time"]) if "time" in texts else np.zeros(len(fields))
    if radii is None or seconds is None:
        return None
    index, label, predict = (np.fromiter(map(int, texts[name]), np.int64, len(fields)) for name in NEEDED)
    if "correct" in texts and texts["correct"] != np.where(predict == label, "1", "0").tolist():
        return None
    if len(np.unique(index)) != len(index) or bool((radii[0][predict == ABSTAIN] > 0).any()):
        return None
    order = np.argsort(index)
    printed, digits, decimals = radii
    return Table(index[order], label[order], predict[order], printed[order], seconds[order], digits, decimals)


def _are_whole(texts: Mapping[str, Sequence[str]]) -> bool:
    """Return whether indices and classes are whole numbers."""
    for name in ("idx", "label"):
        joined = "".join(texts[name])
        if not (joined.isdecimal() and joined.isascii() and {*map(len, texts[name])} <= _LENGTHS):
            return False
    return all(re.fullmatch(r"-1|\d{1,12}", text, re.ASCII) for text in set(texts["predict"]))


def _radii(texts: Sequence[str]) -> tuple[Values, int, int] | None:
    known = {text: _RADIUS.fullmatch(text) for text in set(texts)}
    if any(found is None or not math.isfinite(float(text)) for text, found in known.items()):
        return None
    values = {text: float(text) for text in known}
    pairs = [_digits(found) for found in known.values() if found is not None]
    return np.array([values[text] for text in texts]), max(d for d, _ in pairs), max(d for _, d in pairs)


def _digits(radius: re.Match[str]) -> tuple[int, int]:
    """Return the number of significant digits of a radius, and of those after its point."""
    decimals = radius[2] or ""
    return len((radius[1] + decimals).lstrip("0")), max(0, len(decimals) - int(radius[3] or 0))


def _seconds(texts: Sequence[str]) -> Values | None:
    """Read times of the form H:MM:SS.ffffff; None if one has another."""
    if {*map(len, texts)} != {14} or not "".join(texts).isascii():
        return None
    letters = np.array(texts, dtype="U14").view(np.uint32).reshape(-1, 14).astype(np.int64)
    digits = letters[:, _CLOCK] - ord("0")
    if digits.min() < 0 or digits.max() > 9 or (letters[:, [1, 4, 7]] != [ord(":"), ord(":"), ord(".")]).any():
        return None
    return np.asarray(digits @ [3600, 600, 60, 10, 1, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6])


def _line_by_line(path: Path, head: Sequence[str], rows: Sequence[str]) -> Table:
    """Read lines of any allowed form. Raises: LedgerError naming the first that is wrong."""
    lines = [_line(path, number, head, row) for number, row in enumerate(rows[1:], start=2) if row.strip()]
    _refuse_repeated(path, lines)
    lines.sort(key=lambda line: line.values["idx"])
    index, label, predict, printed, seconds = (
        np.array([line.values[name] for line in lines]) for name in (*NEEDED, "radius", "seconds")
    )
    digits, decimals = max(line.digits for line in lines), max(line.decimals for line in lines)
    return Table(index, label, predict, printed, seconds, digits, decimals)


@dataclass(frozen=True)
class _Line:
    """One line of a table. digits: significant ones of the radius; decimals: those after its point."""

    number: int
    values: dict[str, Any]
    digits: int
    decimals: int


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
        text = texts.get(name, "0")
        if not re.fullmatch(r"-?\d{1,12}", text) or int(text) < least:
            raise refuse(f"{name} is {shortened(text)}, which should be a whole number from {least} on")
        values[name] = int(text)
    radius = texts.get("radius", "0")
    found = _RADIUS.fullmatch(radius)
    if found is None:
        raise refuse(f"radius is {shortened(radius)}, which should be a number, at least 0")
    if not math.isfinite(float(radius)):
        raise refuse(f"radius is {shortened(radius)}, which is not finite")
    values["radius"] = float(radius) if "radius" in texts else math.nan
    elapsed = _TIME.fullmatch(texts.get("time", "0"))
    if elapsed is None:
        raise refuse(f"time is {texts['time']!r}, which should be H:MM:SS or a number of seconds")
    days, hours, minutes, seconds, plain = (float(part or 0) for part in elapsed.groups())
    values["seconds"] = days * 86400 + hours * 3600 + minutes * 60 + seconds + plain
    if problem := _contradiction(texts, values):
        raise refuse(problem)
    return _Line(number, values, *_digits(found))


def _contradiction(texts: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Say what in a line does not go together; nothing if all does."""
    if "correct" in texts and values["correct"] != int(values["predict"] == values["label"]):
        return f"correct is {values['correct']}, but predict is {values['predict']} and label {values['label']}"
    if values["predict"] == ABSTAIN and values["radius"] > 0:
        return f"predict is {ABSTAIN}, an abstention, but radius is {texts['radius']}"
    return ""


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
