"""The gate: a run against the ledger of a baseline, image by image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS, record_of
from hydrabench.ledger import Record, name_images, parse_record
from hydrabench.reporting.baseline import SHA_DIGITS, Ledger, recorded, verdicts

ALPHA = 0.01
Direction = Literal["lost", "gained", "rounding"]
GateOutcome = Literal["passed", "undecided", "regressed", "not comparable"]  # from good to bad
NOT_SHOWN = ("index", "input_sha", "label", "seconds")


@dataclass(frozen=True)
class Tolerance:
    """The losses that are still no regression.

    max_drop: how much of a fraction may be lost, in [0, 1]; None: nothing, and no image either. alpha: of the test of
    numbers that chance has a part in, in (0, 1), for each number.
    """

    max_drop: Fraction | None = None
    alpha: float = ALPHA


@dataclass(frozen=True)
class Change:
    """An image whose verdict changed. old, new: the fields of its record that differ."""

    index: int
    direction: Direction
    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One number of a run beside that of the baseline, on the images that both hold.

    run: its folder. network: what was judged now. against: the ledger of the baseline. images: those of the run.
    title: protocol and threat. old, new: how many of the `n` common images have the verdict. held: how many images the
        baseline holds.
    changes: images whose verdict changed, ascending.
    p_value: of the exact one-sided McNemar test; None where verdicts are compared as they are.
    """

    run: str
    network: str
    against: str
    images: str
    title: str
    metric: str
    n: int
    held: int
    old: int
    new: int
    changes: tuple[Change, ...]
    p_value: float | None
    outcome: GateOutcome

    def count(self, direction: Direction) -> int:
        """Return the number of images that changed so."""
        return sum(change.direction == direction for change in self.changes)


@dataclass(frozen=True)
class Refusal:
    """The reason why something cannot be compared. about: a run, a ledger of the baseline, or the folder of one."""

    about: str
    reason: str


@dataclass(frozen=True)
class GateVerdict:
    """The verdict of the gate."""

    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    refusals: tuple[Refusal, ...]

    @property
    def outcome(self) -> GateOutcome:
        """The worst outcome; a regression that was found counts, whatever else cannot be compared."""
        found = {comparison.outcome for comparison in self.comparisons}
        if "regressed" in found:
            return "regressed"
        if self.refusals or not found:
            return "not comparable"
        return "undecided" if "undecided" in found else "passed"


def compare(
    runs: Sequence[Ledger], baseline: Sequence[Ledger], tolerance: Tolerance, *, metric: str | None = None
) -> GateVerdict:
    """Compare runs with a baseline.

    A run is compared with the ledger of the same data set, protocol, settings and precision; of several, with that of
    the network of the same name. Every ledger of the baseline must meet a run.

    Args: metric: only these numbers: a name, or how it begins ("verified", "certified_accuracy@0.5"); None: all.
    """
    comparisons: list[Comparison] = []
    refusals: list[Refusal] = []
    met: set[str] = set()
    for run in runs:
        if not _wanted(run, metric):
            continue
        try:
            old = _partner(run, baseline)
            met.add(old.source)
            comparisons += _compare(run, old, tolerance, metric)
        except ConfigError as error:
            refusals.append(Refusal(run.source, str(error)))
    for old in baseline:
        if old.source not in met and not refusals and _wanted(old, metric):
            reason = f"no run is {old.title} of {old.network} on {old.images}; run it, or make a new baseline"
            refusals.append(Refusal(old.source, reason))
    if not comparisons and not refusals:
        names = sorted({name for run in runs for name in verdicts(run, run.lines)})
        refusals.append(Refusal("the runs", f"none has a metric {metric!r}; they have {', '.join(names)}"))
    return GateVerdict(tolerance, tuple(_without_repetitions(comparisons)), tuple(refusals))


def _wanted(ledger: Ledger, metric: str | None) -> list[str]:
    """Return the metrics of a ledger that are to be compared."""
    return [
        name
        for name in verdicts(ledger, ledger.lines)
        if metric in (None, name, name.partition("@")[0], name.partition("_")[0])
    ]


def _without_repetitions(comparisons: Sequence[Comparison]) -> Iterator[Comparison]:
    """Leave out the clean accuracy of further runs of a network where it changes on no other images."""
    shown: dict[tuple[str, str], set[int]] = {}
    for one in comparisons:
        changed = {change.index for change in one.changes}
        if one.metric == "clean_accuracy":
            known = shown.get((one.network, one.images))
            if known is not None and changed <= known:
                continue
            shown[one.network, one.images] = changed | (known or set())
        yield one


def _partner(run: Ledger, baseline: Sequence[Ledger]) -> Ledger:
    """Return the ledger of the baseline that a run is compared with. Raises: ConfigError if there is none."""
    about = (run.images.name, run.images.split)
    found = [old for old in baseline if (old.images.name, old.images.split) == about]
    if not found:
        known = sorted({f"{old.images.name} {old.images.split}" for old in baseline})
        raise ConfigError(f"it is about {' '.join(about)}, the baseline about {', '.join(known) or 'nothing'}")
    alike = [old for old in found if old.protocol == run.protocol]
    if not alike:
        titles = sorted({old.title for old in found})
        raise ConfigError(f"it is {run.title}, the baseline holds {', '.join(titles)}")
    differences = [_differences(run, old) for old in alike]
    same = [old for old, differing in zip(alike, differences, strict=True) if not differing]
    if not same:
        raise ConfigError(f"its settings are not those of the baseline: {min(differences, key=len)}")
    named = [old for old in same if old.network == run.network] if len(same) > 1 else same
    if len(named) != 1:
        names = ", ".join(sorted({old.network for old in same}))
        raise ConfigError(f"it is about {run.network}, the baseline has {run.title} of {names}; which one is not clear")
    return named[0]


def _differences(run: Ledger, old: Ledger) -> str:
    """Say how the settings and precisions of two ledgers of one protocol differ; nothing if they do not."""
    here, there = recorded(run).plain(), recorded(old).plain()
    pairs = [("precision", old.precision, run.precision)]
    pairs += [(key, there.get(key), here.get(key)) for key in sorted(here.keys() | there.keys())]
    return ", ".join(f"{key} is {now} and was {before}" for key, before, now in pairs if before != now)


def _compare(run: Ledger, old: Ledger, tolerance: Tolerance, metric: str | None) -> list[Comparison]:
    """Compare all wanted metrics. Raises: ConfigError if the two are not about the same images."""
    settings = recorded(run)
    evaluator = EVALUATORS[settings.kind]
    before, after = _paired(_records(old), _records(run))
    if not evaluator.by_image(settings) and run.images != old.images:
        raise ConfigError(
            f"verdicts of {run.protocol} depend on the other images of a block; it judged {run.images}, the baseline "
            f"{old.images}: judge the same images"
        )
    by_chance = evaluator.sampled or not evaluator.repeatable(settings)
    values = [verdicts(one, list(map(asdict, records))) for one, records in ((old, before), (run, after))]
    found = []
    for name in _wanted(run, metric):
        changes = tuple(_changes(before, after, values[0][name], values[1][name], by_chance=by_chance))
        lost, gained = (sum(change.direction == way for change in changes) for way in ("lost", "gained"))
        p_value = worse_by_chance(lost, gained) if by_chance else None
        found.append(
            Comparison(
                run=run.source,
                network=run.network,
                against=old.source,
                images=str(run.images),
                title=run.title,
                metric=name,
                n=len(after),
                held=len(old.lines),
                old=sum(map(bool, values[0][name])),
                new=sum(map(bool, values[1][name])),
                changes=changes,
                p_value=p_value,
                outcome=_outcome(lost, gained, len(after), p_value, tolerance),
            )
        )
    return found


def _records(ledger: Ledger) -> dict[int, Record]:
    """Return the records of a ledger by index. Raises: ConfigError if one is not what this version writes."""
    kind = record_of(recorded(ledger))
    try:
        return {line["index"]: parse_record({"seconds": 0.0, **line}, kind) for line in ledger.lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"a record of {ledger.source} {error}; make a new baseline") from error


def _paired(old: Mapping[int, Record], new: Mapping[int, Record]) -> tuple[list[Record], list[Record]]:
    """Return the records of the images that both hold. Raises: ConfigError if there are none, or images differ."""
    common = sorted(old.keys() & new.keys())
    if not common:
        raise ConfigError("it judged none of the images of the baseline")
    for what, differing in (
        ("labels", [i for i in common if old[i].label != new[i].label]),
        ("pixels", [i for i in common if old[i].input_sha[:SHA_DIGITS] != new[i].input_sha[:SHA_DIGITS]]),
    ):
        if differing:
            raise ConfigError(f"the baseline has other {what} for {name_images(differing)}; were the data changed?")
    return [replace(old[i], input_sha=new[i].input_sha) for i in common], [new[i] for i in common]


def _changes(
    old: Sequence[Record], new: Sequence[Record], before: Sequence[float], after: Sequence[float], *, by_chance: bool
) -> Iterator[Change]:
    """Yield the images whose verdicts differ; a deterministic verdict at a margin next to 0 may turn with rounding."""
    for a, b, was, now in zip(old, new, before, after, strict=True):
        if bool(was) != bool(now):
            rounding = not by_chance and not any(a.differences(b))
            here, there = asdict(b), asdict(a)
            names = [name for name in here if name not in NOT_SHOWN and here[name] != there[name]]
            plain = [name for name in names if not isinstance(here[name], list)]
            yield Change(
                a.index,
                "rounding" if rounding else "lost" if was else "gained",
                {name: there[name] for name in plain},
                {name: here[name] for name in plain},
            )


def worse_by_chance(lost: int, gained: int) -> float:
    """Return the probability of as many losses or more if a changed image is as likely lost as gained.

    Args: lost, gained: images that lost or gained their verdict, each at least 0.
    Source: exact one-sided McNemar test; Fagerland, Lydersen and Laake (2013), section 3.
    """
    from scipy.stats import binom

    return float(binom.sf(lost - 1, lost + gained, 0.5))


def fewest_losses(alpha: float) -> int:
    """Return how many images must be lost, and none gained, for the test to find anything at `alpha`."""
    return math.ceil(-math.log2(alpha))


def _outcome(lost: int, gained: int, n: int, p_value: float | None, tolerance: Tolerance) -> GateOutcome:
    drop, allowed = Fraction(lost - gained, n), tolerance.max_drop
    if p_value is None:
        return "regressed" if (lost > 0 if allowed is None else drop > allowed) else "passed"
    if drop <= (allowed or 0):
        return "passed"
    if p_value <= tolerance.alpha:
        return "regressed"
    return "undecided" if lost + gained < fewest_losses(tolerance.alpha) else "passed"
