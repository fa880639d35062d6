"""RobustBench's `model_info/DATASET/THREAT/NAME.json`: read as rows of published numbers, and written.

A file holds strings: `clean_acc`, `autoattack_acc`, `external` (the best known attack), `reported` (the authors'
number), `corruptions_acc`, all in percent, `eps` ("8/255", "0.5" or null), `name` (the title of the paper), `link`,
`authors`, `venue`, `architecture`, `additional_data`, `number_forward_passes`, perhaps `footnote` and `unreliable`. The
threat is the folder: Linf, L2, corruptions or corruptions_3d.
Source: github.com/RobustBench/robustbench, folder model_info.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydrabench.documents import parse_json, read_text
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.reporting.evaluations import Evaluation
from hydrabench.reporting.external import ExternalNumber, ExternalRow, Imported
from hydrabench.threat import Norm, Threat, parse_radius, radius_text

NORM_OF: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}  # it has no list for L1
FOLDER_OF = {norm: folder for folder, norm in NORM_OF.items()}
ATTACKED = {"autoattack_acc": "AutoAttack", "external": "best known attack", "reported": "reported by its authors"}
CORRUPTION_KEYS = {"corruptions": "corruptions_acc", "corruptions_3d": "corruptions_acc_3d"}
EXAMPLE_PATH = "give a file DATASET/THREAT/NAME.json, or a folder of them, such as model_info"


def read_model_infos(text: str) -> Imported:
    """Read a file, or all below a folder.

    Files outside a folder of a threat are passed over and counted: older versions of the repository have some.
    Returns: one row for each file, called by its name without `.json`; corruptions are accuracies without a threat.
    Raises: LedgerError in one line for a path without such files, or one whose numbers are none.
    """
    path = Path(text)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise LedgerError(f"--import robustbench {path}: no *.json there; {EXAMPLE_PATH}")
    rows: list[ExternalRow] = []
    skipped: Counter[str] = Counter()
    for file in files:
        if file.parent.name not in (*NORM_OF, *CORRUPTION_KEYS):
            skipped["not in a folder Linf, L2, corruptions or corruptions_3d"] += 1
            continue
        rows.append(_row(file))
    if not rows:
        raise LedgerError(f"--import robustbench {path}: no file lies in a folder of its threat; {EXAMPLE_PATH}")
    return Imported(rows=tuple(rows), skipped=dict(skipped))


def _row(file: Path) -> ExternalRow:
    try:
        info = parse_json(read_text(file), str(file))
    except ConfigError as error:
        raise LedgerError(str(error)) from error
    if not isinstance(info, dict):
        raise LedgerError(f"{file} holds {shortened(info)}, not an object with RobustBench's keys")
    numbers = tuple(_numbers(file, info))
    if not numbers:
        raise LedgerError(f"{file} holds no accuracy: none of clean_acc, {', '.join(ATTACKED)}")
    extra = info.get("additional_data")
    return ExternalRow(
        name=file.stem,
        source=_text(info.get("link")) or "RobustBench",
        dataset=_text(info.get("dataset")) or file.parent.parent.name,
        numbers=numbers,
        arch=_text(info.get("architecture")) or "unknown",
        additional_data=extra if isinstance(extra, bool) else None,
        notes=tuple(_notes(info)),
    )


def _numbers(file: Path, info: Mapping[str, Any]) -> Iterator[ExternalNumber]:
    """The numbers of a file; robust ones only where the radius is known."""
    folder = file.parent.name
    clean = _percent(file, info, "clean_acc")
    if clean is not None:
        yield ExternalNumber("clean_accuracy", clean, protocol="clean")
    if folder in CORRUPTION_KEYS:
        value = _percent(file, info, CORRUPTION_KEYS[folder])
        if value is not None:
            yield ExternalNumber("robust_accuracy", value, protocol=folder)
        return
    threat = _threat(file, info, NORM_OF[folder])
    for key, protocol in ATTACKED.items() if threat else ():
        value = _percent(file, info, key)
        if value is not None:
            yield ExternalNumber("robust_accuracy", value, protocol=protocol, threat=threat)


def _threat(file: Path, info: Mapping[str, Any], norm: Norm) -> Threat | None:
    given = info.get("eps")
    if given in (None, "", "null"):
        return None
    try:
        return Threat(norm, parse_radius(str(given), norm=norm))
    except ConfigError as error:
        raise LedgerError(f"{file}: eps: {error}") from error


def _percent(file: Path, info: Mapping[str, Any], key: str) -> float | None:
    """A number of percent as a fraction; None where the file has none."""
    given = info.get(key)
    if given in (None, "", "null", "-"):
        return None
    text = str(given).strip().removesuffix("%")
    if not re.fullmatch(r"\d{1,3}(\.\d{1,12})?", text) or not float(text) <= 100:
        raise LedgerError(f"{file}: {key} is {shortened(given)}, which should be a number of percent from 0 to 100")
    return float(Fraction(text) / 100)


def _notes(info: Mapping[str, Any]) -> Iterator[str]:
    if info.get("unreliable") is True:
        yield "RobustBench flags its AutoAttack number as potentially unreliable."
    if _text(info.get("footnote")):
        yield _text(info["footnote"])


def _text(value: Any) -> str:
    """Words of somebody else, without markup and on one line."""
    return " ".join(re.sub(r"<[^<>]*>", " ", value).split()) if isinstance(value, str) else ""


# Writing ---------------------------------------------------------------------------------------


def model_infos(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Return the files of all standard AutoAttack runs, by their path below `model_info`.

    Keys that no run knows, such as the title and the authors, are "" or null, to be filled in; `footnote` says on how
    many images it was made if these are not the whole test set that RobustBench takes.
    Raises: LedgerError if there is no such run, or two of them would have one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        if evaluation.kind != "autoattack" or evaluation.threat is None or evaluation.threat.norm not in FOLDER_OF:
            continue
        name = re.sub(r"[^\w.+-]+", "-", evaluation.checkpoint.name)
        path = f"{evaluation.images.name}/{FOLDER_OF[evaluation.threat.norm]}/{name}.json"
        if path in found:
            raise LedgerError(
                f"{evaluation.path}: a second AutoAttack run of {name} would be {path}; report one of them"
            )
        found[path] = _info(evaluation, evaluation.threat)
    if not found:
        raise LedgerError("--format robustbench writes AutoAttack runs, and there is none; make one with attack")
    return found


def _info(evaluation: Evaluation, threat: Threat) -> dict[str, Any]:
    records = evaluation.records
    clean = sum(record["prediction"] == record["label"] for record in records)
    robust = sum(bool(record["robust"]) for record in records)
    accuracy = f"{100 * robust / len(records):.2f}"
    return {
        "link": "",
        "name": evaluation.checkpoint.name,
        "authors": "",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": evaluation.images.name,
        "venue": "",
        "architecture": evaluation.checkpoint.arch,
        "eps": radius_text(threat.epsilon),
        "clean_acc": f"{100 * clean / len(records):.2f}",
        "reported": accuracy,
        "autoattack_acc": accuracy,
        "footnote": f"{evaluation.protocol} on {evaluation.images}, {evaluation.precision}.",
        "unreliable": False,
    }
