"""Baselines: ledgers in a few kilobytes, which a team commits and later runs are compared with.

A baseline is a folder: `baseline.json` says what each ledger is about, `*.jsonl.gz` holds a line for each image. Of a
record it keeps what verdicts rest on and what a reader wants to see of an image that changed: no times, no lists of
votes, the beginning of the hash of the pixels, numbers with four digits where no verdict depends on more.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydrabench.config import parse
from hydrabench.documents import parse_json, read_bytes, read_json
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.evaluators import EVALUATORS, at, record_of, recorded_settings
from hydrabench.files import close_name, json_text
from hydrabench.reporting.evaluations import Evaluation, ImageSelection

BASELINE_SCHEMA = "hydrabench.baseline/1"
CONTENTS_FILE = "baseline.json"
SHA_DIGITS = 8  # of the hash of an image: 32 bits, enough to notice other pixels
SHORT = 4  # digits of a number that no verdict depends on
LARGEST = 1 << 28  # bytes of a ledger, unpacked
MAKE_AGAIN = "make it again with hydrabench baseline"


@dataclass(frozen=True)
class Ledger:
    """The records of one evaluation, as the gate compares them.

    source: the file or folder that they are from, for messages. network: its name. lines: one for each image, sorted by
    index; `input_sha` may be cut to its first digits.
    """

    source: str
    network: str
    sha256: str
    images: ImageSelection
    precision: str
    protocol: str
    settings: dict[str, Any]
    lines: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def title(self) -> str:
        """The protocol and the threat: "pgd-50@2 at L∞ 8/255"."""
        try:
            return f"{self.protocol}{at(recorded(self))}"
        except ConfigError:  # of another version
            return self.protocol


@dataclass(frozen=True)
class Entry:
    """One ledger in `baseline.json`; the field names are its keys."""

    file: str
    sha256: str
    network: str
    checkpoint_sha256: str
    dataset: ImageSelection
    precision: str
    protocol: str
    settings: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """The content of `baseline.json`."""

    schema: str
    ledgers: tuple[Entry, ...]


def recorded(ledger: Ledger) -> Any:
    """Return the settings of a ledger, checked. Raises: ConfigError if this version makes another protocol of them."""
    return recorded_settings(ledger.settings, ledger.protocol, f"settings of {ledger.source}")


def ledger_of(evaluation: Evaluation) -> Ledger:
    """Return what the gate compares of a run."""
    about = evaluation.checkpoint
    return Ledger(
        str(evaluation.path),
        about.name,
        about.sha256,
        evaluation.images,
        evaluation.precision,
        evaluation.protocol,
        dict(evaluation.settings),
        tuple(evaluation.records),
    )


def baseline_files(
    evaluations: Sequence[Evaluation], environments: Mapping[Path, Mapping[str, Any]]
) -> dict[str, bytes]:
    """Return the files of a baseline by name, `baseline.json` last.

    Args: environments: versions and hardware of each run, by its path.
    Raises: LedgerError if two runs are about the same network, images and settings.
    """
    files: dict[str, bytes] = {}
    entries = []
    seen: dict[Any, Path] = {}
    for evaluation in evaluations:
        ledger = ledger_of(evaluation)
        key = (ledger.network, ledger.images, ledger.precision, ledger.protocol, json.dumps(ledger.settings))
        if key in seen:
            raise LedgerError(
                f"{seen[key]} and {evaluation.path} are both {ledger.title} of {ledger.network} on "
                f"{ledger.images}; a baseline keeps one of them, leave the other out"
            )
        seen[key] = evaluation.path
        name, content = _file_name(ledger, files), _packed(ledger)
        files[name] = content
        images = {"name": ledger.images.name, "split": ledger.images.split, "n": ledger.images.n}
        entries.append(
            {
                "file": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "network": ledger.network,
                "checkpoint_sha256": ledger.sha256,
                "dataset": images | ({"chosen": ledger.images.chosen} if ledger.images.chosen else {}),
                "precision": ledger.precision,
                "protocol": ledger.protocol,
                "settings": ledger.settings,
                "environment": dict(environments.get(evaluation.path, {})),
            }
        )
    return {**files, CONTENTS_FILE: json_text({"schema": BASELINE_SCHEMA, "ledgers": entries}).encode()}


def _file_name(ledger: Ledger, used: Mapping[str, bytes]) -> str:
    """Return a name that no other ledger of the baseline has."""
    title = ledger.title.replace(" at ", "-").replace("L∞ ", "linf-").replace("L2 ", "l2-").replace("σ=", "sigma-")
    base = re.sub(r"[^\w.+-]+", "-", f"{ledger.network}-{title}", flags=re.ASCII)[-120:].strip("-.")
    names = (f"{base}{end}.jsonl.gz" for end in ("", *(f"~{count}" for count in range(2, len(used) + 3))))
    return next(name for name in names if name not in used)


def _packed(ledger: Ledger) -> bytes:
    """Return the lines of a ledger, compressed; the same bytes for the same records."""
    known = {one.name: one for one in fields(record_of(recorded(ledger)))}
    lines = [{name: _rounded(value) for name, value in line.items()} for line in ledger.lines]
    if verdicts(ledger, lines) != verdicts(ledger, ledger.lines):
        lines = list(ledger.lines)
    kept = [
        {name: line[name] for name in known if name in line and _is_kept(known[name], line[name])} for line in lines
    ]
    for line in kept:
        line["input_sha"] = line["input_sha"][:SHA_DIGITS]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in kept)
    return gzip.compress(text.encode(), mtime=0)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{SHORT}g}") if isinstance(value, float) else value


def _is_kept(known: Field[Any], value: Any) -> bool:
    """Return whether a baseline keeps a value: no time, no default, no list that may be left out."""
    if known.name == "seconds" or (known.default is not MISSING and value == known.default):
        return False
    return known.default_factory is MISSING or not isinstance(value, list)


def verdicts(ledger: Ledger, lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Return the verdicts that are good to have, one for each line, by metric; means have none."""
    evaluator = EVALUATORS[ledger.settings["kind"]]
    found = evaluator.metrics(lines, evaluator.read(ledger.settings))
    return {name: tuple(metric.values) for name, metric in found.items() if metric.interval != "t" and metric.desired}


def read_baseline(folder: Path) -> list[Ledger]:
    """Read a baseline.

    Raises: LedgerError naming what is missing, altered or not known to this version.
    """
    source = folder / CONTENTS_FILE
    try:
        values = read_json(source)
        if not isinstance(values, dict) or values.get("schema") != BASELINE_SCHEMA:
            schema = shortened(values.get("schema") if isinstance(values, dict) else None)
            raise LedgerError(f"{source} has schema {schema}, this version reads {BASELINE_SCHEMA!r}; {MAKE_AGAIN}")
        manifest = parse(Contents, values, str(source))
    except FileNotFoundError as error:
        problem = f"holds no {CONTENTS_FILE}" if folder.exists() else f"does not exist{close_name(folder)}"
        raise LedgerError(
            f"{folder} is no baseline: it {problem}; `hydrabench baseline RUNS --out {folder}` makes one"
        ) from error
    except ConfigError as error:
        raise LedgerError(f"{error}; {MAKE_AGAIN}") from error
    return [_read_ledger(folder, entry) for entry in manifest.ledgers]


def _read_ledger(folder: Path, entry: Entry) -> Ledger:
    path = folder / entry.file
    if Path(entry.file).name != entry.file:
        raise LedgerError(
            f"{folder / CONTENTS_FILE} names the file {shortened(entry.file)}, outside its folder; {MAKE_AGAIN}"
        )
    try:
        packed = read_bytes(path, LARGEST)
        if hashlib.sha256(packed).hexdigest() != entry.sha256:
            raise LedgerError(f"{path} is not the file that {CONTENTS_FILE} names: it was altered; {MAKE_AGAIN}")
        lines = tuple(parse_json(line, str(path)) for line in _unpacked(packed, path).splitlines())
    except (OSError, ConfigError) as error:
        raise LedgerError(f"{path} cannot be read: {error}; {MAKE_AGAIN}") from error
    if entry.settings.get("kind") not in EVALUATORS:
        raise LedgerError(
            f"{path} was made by {shortened(entry.settings.get('kind'))}, which this version does not have"
        )
    if len(lines) != entry.dataset.n:
        raise LedgerError(f"{path} holds {len(lines)} records, {CONTENTS_FILE} says {entry.dataset.n}; {MAKE_AGAIN}")
    about = (entry.network, entry.checkpoint_sha256, entry.dataset, entry.precision, entry.protocol, entry.settings)
    return Ledger(str(path), *about, lines)


def _unpacked(packed: bytes, path: Path) -> str:
    """Return the text of a compressed ledger of at most `LARGEST` bytes."""
    machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = machine.decompress(packed, LARGEST)
    except zlib.error as error:
        raise LedgerError(f"{path} is damaged: {error}; {MAKE_AGAIN}") from error
    if not machine.eof:
        raise LedgerError(f"{path} is cut off, or larger than {LARGEST:,} bytes; {MAKE_AGAIN}")
    return text.decode()
