"""`--import cohen`: one table, or all tables that a pattern finds, as evaluations.

A table does not say which network and data set it is about, nor how it was made. The options of the import do, or its
path: `logs/cifar10/resnet110/noise_0.25/test/sigma_0.50` is the network resnet110/noise_0.25 on cifar10 at σ = 0.5.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hydrabench.config import parse
from hydrabench.config.fields import Density, Section
from hydrabench.config.protocol import unless
from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, Metric
from hydrabench.evaluators.smoothing_settings import DEFAULT_RADII
from hydrabench.ledger import ABSTAIN
from hydrabench.reporting.cohen import EXACT_DIGITS, NoCertificates, Table, read_table
from hydrabench.reporting.evaluations import IMPORTED, EvaluatedNetwork, Evaluation, ImageSelection
from hydrabench.reporting.external import ExternalNumber, ExternalRow, Imported
from hydrabench.selection import selection_name

EXAMPLE = "logs/sigma_0.25,name=resnet110,dataset=cifar10,sigma=0.25"
KNOWN_DATASETS = ("cifar10", "cifar100", "svhn", "imagenet", "mnist", "digits")
PRINTED = "as printed"  # protocol of numbers that count radii as they are printed
_NOISE = (re.compile(r"sigma[_=-]?(\d+(?:\.\d+)?)"), re.compile(r"noise[_=-]?(\d+(?:\.\d+)?)"))
_SOURCE = "radii of few digits count as they are printed, not as the least that rounds to them"


class Described(Section):
    """The settings that a table lacks. n0, samples, alpha: None if not known; radii: at which to count certificates."""

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

    def protocol(self, mode: str, unknown: str) -> str:
        """Never a protocol of our own runs; if a setting is unknown, `unknown` stands for it."""
        lead = f"smoothing-{IMPORTED}" if mode == IMPORTED else f"smoothing-{mode}-{IMPORTED}"
        if None in (self.n0, self.samples, self.alpha):
            return f"{lead}-{unknown}@1"
        spelt = unless(100, "n0_", self.n0 or 0) + unless(100_000, "n", self.samples or 0)
        return f"{lead}{spelt}{unless(0.001, 'a', self.alpha or 0)}@1"


def read_tables(text: str) -> Imported:
    """Read what `--import cohen TEXT` names: a table, a pattern such as `logs/**/*.tsv`, or a folder.

    Args: text: the path, and what neither table nor path says, as in `EXAMPLE`; the keys are the fields of `Described`.
        Of a pattern, name, dataset and sigma come from the path of each file; tables of unknown settings are taken to
        be made alike.
    Returns: an evaluation without pixel hashes for each table. A radius that is printed with few digits counts as the
        least that rounds to it, because a certificate must not grow by rounding; rows give the numbers as printed,
        where they differ.
    Raises: ConfigError if the text is not complete or the pattern finds nothing, LedgerError naming file, line and
        value if a table is wrong.
    """
    place, *pairs = re.split(r",(?=[a-z]\w*=)", text)  # only what looks like a key counts as one: paths may hold commas
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs)
    if "radii" in given:
        given["radii"] = given["radii"].split("+")
    if not (glob.has_magic(place) or Path(place).is_dir()):
        table = read_table(Path(place))
        about = _described(Path(place), given)
        return _imported([_evaluation(Path(place), about, table, unknown=about.name)], [table])
    return _read_all(place, given)


def _read_all(pattern: str, given: dict[str, Any]) -> Imported:
    """Read all certificates that a pattern or a folder finds."""
    if "name" in given:
        raise ConfigError(f"--import cohen {pattern}: name is for one table; of several it comes from their paths")
    found = glob.iglob(pattern, recursive=True) if glob.has_magic(pattern) else map(str, Path(pattern).rglob("*"))
    paths = sorted(path for path in map(Path, found) if path.is_file())
    skipped: Counter[str] = Counter()
    read: list[tuple[Path, dict[str, Any], Table]] = []
    for path in paths:
        said = {**_said_by(path), **given}
        try:
            table = read_table(path)
        except NoCertificates as none:
            skipped[none.why] += 1
            continue
        if not table.certifies:
            skipped["are predictions, which certify nothing"] += 1
        elif missing := [key for key in ("dataset", "sigma") if key not in said]:
            skipped[f"do not say their {' and '.join(missing)} in their paths; add {missing[0]}=..."] += 1
        else:
            read.append((path, said, table))
    if not read:
        reasons = "".join(f"; {count} {why}" for why, count in skipped.items())
        raise ConfigError(f"--import cohen {pattern} finds no table of certificates among {len(paths)} files{reasons}")
    names = _names([(path, said) for path, said, _ in read])
    described = [_described(path, {**said, "name": name}) for (path, said, _), name in zip(read, names, strict=True)]
    tables = [table for _, _, table in read]
    evaluations = [
        _evaluation(path, about, table, unknown="unknown")
        for (path, _, table), about in zip(read, described, strict=True)
    ]
    return replace(_imported(list(_by_labels(evaluations)), tables), skipped=dict(skipped))


def _described(path: Path, values: dict[str, Any]) -> Described:
    try:
        return parse(Described, values, f"--import {path}")
    except ConfigError as error:
        raise ConfigError(f"{error}; write for example --import cohen {EXAMPLE}") from error


def _said_by(path: Path) -> dict[str, Any]:
    """Return what a path says: the noise of the certificates, or of the network, and the data set."""
    said: dict[str, Any] = {}
    for pattern in _NOISE:
        values = [found[1] for part in reversed(path.parts) if (found := pattern.search(part))]
        if values and "sigma" not in said:
            said["sigma"] = values[0]
    if datasets := [part for part in path.parts if part.lower() in KNOWN_DATASETS]:
        said["dataset"] = datasets[-1].lower()
    return said


def _names(files: Sequence[tuple[Path, dict[str, Any]]]) -> list[str]:
    """Name the network of each file by what its path says beside the noise of the certificates and the data set."""
    parts = [path.parts for path, _ in files]
    alike = 0
    while all(len(one) > alike + 1 for one in parts) and len({one[alike] for one in parts}) == 1:
        alike += 1
    whole = ["/".join(one[alike:]) for one in parts]
    short = []
    for one, (_, said) in zip(parts, files, strict=True):
        noisy = sum(bool(pattern.search(part)) for pattern in _NOISE for part in one) > 1 or _NOISE[0].search(one[-1])
        dropped = {"test", "data", "certify", str(said["dataset"])}
        plain = [
            _NOISE[0].sub("", part).strip("-_.") if noisy else part
            for part in [*one[:-1], one[-1].removesuffix(".tsv")]
        ]
        kept = [part for part in plain[alike:] if part and part not in dropped]
        short.append("/".join(kept or [part for part in plain if part and part not in dropped][-1:] or one[-1:]))
    uses = Counter(zip(short, (str(said["sigma"]) for _, said in files), strict=True))
    twice = {name for (name, _), count in uses.items() if count > 1}
    return [long if name in twice else name for name, long in zip(short, whole, strict=True)]


def _by_labels(evaluations: Sequence[Evaluation]) -> Iterator[Evaluation]:
    """Give tables whose labels contradict those of earlier ones a split of their own, so that nothing compares them."""
    maps: dict[tuple[str, str], list[dict[int, int]]] = {}
    for evaluation in evaluations:
        images = evaluation.images
        labels = dict(zip(evaluation.fields["index"].tolist(), evaluation.fields["label"].tolist(), strict=True))
        known = maps.setdefault((images.name, images.split), [])
        fits = (i for i, one in enumerate(known) if all(one.get(index, y) == y for index, y in labels.items()))
        place = next(fits, len(known))
        if place == len(known):
            known.append({})
        known[place].update(labels)
        split = f"{images.split}, labels {place + 1}" if place else images.split
        yield replace(evaluation, images=replace(images, split=split))


def _evaluation(path: Path, about: Described, table: Table, *, unknown: str) -> Evaluation:
    """Make an evaluation of a table; of predictions one of mode "predict"."""
    mode = IMPORTED if table.certifies else "predict"
    settings = about.model_dump(mode="json", include={"sigma", "n0", "samples", "alpha", "radii"})
    settings = {"kind": "smoothing", "mode": mode, **settings}
    indices = table.index.tolist()
    fields = {
        "index": table.index,
        "input_sha": np.full(len(indices), None, dtype=object),
        "label": table.label,
        "prediction": table.predict,
        "seconds": table.seconds,
        "radius": table.radius() if table.certifies else np.zeros(len(indices)),
        "abstain": table.predict == ABSTAIN,
        "mode": np.full(len(indices), mode, dtype=object),
    }
    # Not a hash: rows of one name are one network, and never the one of a checkpoint that we know.
    network = EvaluatedNetwork(
        about.name, f"{IMPORTED}:{about.name}", about.arch, about.objective, about.density, None, None, None
    )
    return Evaluation(
        path,
        network,
        ImageSelection(about.dataset, about.split, len(indices), selection_name(indices)),
        IMPORTED,
        "smoothing",
        about.protocol(mode, unknown),
        settings,
        fields,
        _metrics(fields, settings),
    )


def _metrics(fields: Mapping[str, np.ndarray[Any, Any]], settings: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metrics of smoothing, each computed once for all images of which the table says the same."""
    evaluator = EVALUATORS["smoothing"]
    right = fields["prediction"] == fields["label"]
    outcomes = np.stack([fields["radius"], right, fields["abstain"]], axis=1)
    _, first, places = np.unique(outcomes, axis=0, return_index=True, return_inverse=True)
    columns = [values[first].tolist() for values in fields.values()]
    records = [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    found = evaluator.metrics(records, evaluator.read(settings))
    return {
        name: replace(metric, values=tuple(np.array(metric.values)[places].tolist())) for name, metric in found.items()
    }


def _imported(evaluations: Sequence[Evaluation], tables: Sequence[Table]) -> Imported:
    pairs = zip(evaluations, tables, strict=True)
    rows = [row for evaluation, table in pairs if table.certifies and (row := _as_printed(evaluation, table))]
    return Imported(tuple(evaluations), tuple(rows))


def _as_printed(evaluation: Evaluation, table: Table) -> ExternalRow | None:
    """Return the numbers that count radii as printed, where that makes a difference."""
    if table.digits >= EXACT_DIGITS:
        return None
    printed = np.where(table.predict == table.label, table.printed, -1.0)
    images, numbers = evaluation.images, []
    for name, metric in evaluation.metrics.items():
        value = (printed >= (metric.radius or 0.0)).mean()
        if metric.radius is not None and round(value * len(printed)) != int(np.count_nonzero(metric.values)):
            numbers.append(
                ExternalNumber(
                    name,
                    float(value),
                    images.n,
                    PRINTED,
                    sigma=float(evaluation.settings["sigma"]),
                    chosen=images.chosen,
                    precision=IMPORTED,
                )
            )
    about = evaluation.checkpoint
    if not numbers:
        return None
    return ExternalRow(
        about.name, _SOURCE, images.name, tuple(numbers), images.split, about.arch, about.objective, about.density
    )
