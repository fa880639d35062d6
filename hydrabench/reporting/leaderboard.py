"""The leaderboard: one row per checkpoint, one column per way of making a number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hydrabench.errors import LedgerError
from hydrabench.evaluators.description import CONDITIONS
from hydrabench.ledger import RunFolder, name_images
from hydrabench.reporting.cells import Cell, Meeting, default_protocol, gather
from hydrabench.reporting.columns import OPEN, Column, Protocol, titles
from hydrabench.reporting.contradictions import refuse_contradictions
from hydrabench.reporting.evaluations import (
    EvaluatedNetwork,
    Evaluation,
    read_evaluations,
)
from hydrabench.reporting.external import ExternalRow
from hydrabench.reporting.inputs import refuse_mixed_inputs, shared
from hydrabench.reporting.published import Cells, published_cells, published_protocols
from hydrabench.reporting.ranking import arrange
from hydrabench.reporting.rows import Row, distinct, networks_of
from hydrabench.reporting.sandwich import PROTOCOL as SANDWICH
from hydrabench.reporting.sandwich import Sandwich, gap_cells, sandwiches
from hydrabench.reporting.statistics import Estimate, estimate


@dataclass(frozen=True)
class Leaderboard:
    """Rows in groups, by score within each: networks of one density unless something else was asked for.

    cells: what each image contributes, by the hash of the network and the column. evaluations: all ledgers.
    sandwiches: of each network and threat that a bound and an attack judged. external: rows of published numbers.
    score: the column that ranks the rows of each data set. tests: how many comparisons of pairs the ranks rest on.
    ancestors: names of networks that rows were made from and that are no rows themselves, by SHA-256.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    protocols: tuple[Protocol, ...]
    cells: Mapping[tuple[str, Column], Cell] = field(compare=False, repr=False, default_factory=dict)
    evaluations: tuple[Evaluation, ...] = field(compare=False, repr=False, default=())
    sandwiches: tuple[Sandwich, ...] = field(compare=False, repr=False, default=())
    external: tuple[ExternalRow, ...] = field(compare=False, repr=False, default=())
    score: Mapping[str, Column] = field(default_factory=dict)
    tests: int = 0
    ancestors: Mapping[str, str] = field(compare=False, default_factory=dict)


def build_leaderboard(
    runs: Sequence[RunFolder],
    imported: Sequence[Evaluation] = (),
    *,
    n: Meeting = "common",
    external: Sequence[ExternalRow] = (),
    sort: str = "",
    group_by: str = "density",
) -> Leaderboard:
    """Make the leaderboard of all evaluations among `runs` and of those imported; their order makes no difference.

    Args:
        runs: may be empty if there are imported ones, see `reporting.cohen`.
        n: see `cells.gather`. sort, group_by: see `ranking.arrange`.
        external: numbers without records, see `reporting.published`.
    Raises:
        ConfigError: see `ranking.arrange`.
        LedgerError: see `read_evaluations`; also if one checkpoint has contradictory clean predictions,
            or different verdicts under one protocol, or one protocol id stands for different settings.
        GateError: an image is verified in one ledger and broken in another (`refuse_contradictions`).
    """
    of_runs = read_evaluations(runs) if runs or not (imported or external) else []
    evaluations = (*of_runs, *sorted(imported, key=lambda one: str(one.path)))  # hashes first, to compare others with
    refuse_mixed_inputs(evaluations)
    refuse_contradictions(evaluations)
    _refuse_contradictory_predictions(evaluations)
    layers = tuple(sandwiches(evaluations))
    cells = gather(evaluations, n, derived=gap_cells(layers)) if evaluations else {}
    published = published_cells(external)
    networks = {**{sha: network for sha, (network, _) in published.items()}, **networks_of(evaluations)}
    numbers = _numbers(cells, published)
    columns = tuple(sorted({column for found in numbers.values() for column in found}, key=lambda one: one.order))
    rows = _rows(networks, numbers, columns)
    protocols = _protocols(evaluations, columns, published_protocols(published))
    names = titles(columns, protocols)
    order = arrange(distinct(rows), columns, cells, titles=names, sort=sort, group_by=group_by)
    ranked = (order.score, order.tests)
    return Leaderboard(columns, order.rows, protocols, cells, evaluations, layers, tuple(external), *ranked)


def _rows(
    networks: Mapping[str, EvaluatedNetwork],
    numbers: Mapping[str, Mapping[Column, Estimate]],
    columns: Sequence[Column],
) -> list[Row]:
    """One row for each network, its numbers in the order of the columns."""
    return [
        Row(networks[sha], networks[sha].name, {column: found[column] for column in columns if column in found})
        for sha, found in numbers.items()
    ]


def _numbers(cells: Mapping[tuple[str, Column], Cell], published: Cells) -> dict[str, dict[Column, Estimate]]:
    """The numbers of each network, by the hash of its checkpoint: those of ledgers, and printed ones."""
    numbers: dict[str, dict[Column, Estimate]] = defaultdict(dict)
    for (sha, column), cell in cells.items():
        numbers[sha][column] = estimate(column.interval, cell.values)
    for sha, (_, printed) in published.items():
        numbers[sha] |= printed
    return numbers


def _refuse_contradictory_predictions(evaluations: Sequence[Evaluation]) -> None:
    """Raise if one network in one precision has two predictions for a clean image; smoothed ones are separate."""
    groups: dict[tuple[str, str, str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.evaluator.claims.startswith("smoothed"):
            continue
        images = evaluation.images
        group = groups.setdefault((evaluation.checkpoint.sha256, images.name, images.split, evaluation.precision), [])
        for first in group:
            in_first, in_second = shared(first, evaluation)
            differing = first.fields["prediction"][in_first] != evaluation.fields["prediction"][in_second]
            if differing.any():
                named = name_images(first.fields["index"][in_first[differing]].tolist())
                raise LedgerError(
                    f"{first.path} and {evaluation.path} hold contradictory clean predictions of checkpoint "
                    f"{first.checkpoint.name} on {named}; they were made by different code or hardware: run both again"
                )
        group.append(evaluation)


def _protocols(
    evaluations: Sequence[Evaluation], columns: Sequence[Column], published: Sequence[Protocol]
) -> tuple[Protocol, ...]:
    """The legend, in the order of the columns; one id must not stand for different settings."""
    shared_kinds = {metric.column_of for one in evaluations for metric in one.metrics.values() if metric.column_of}
    found = {
        id_: (Protocol(id_, kind, {}), evaluations[0]) for kind in shared_kinds for id_ in [default_protocol(kind)]
    }
    if evaluations:
        found[SANDWICH] = Protocol(SANDWICH, OPEN, {}), evaluations[0]
    for evaluation in evaluations:
        given = ("kind", "version", *CONDITIONS)
        settings = {key: value for key, value in evaluation.settings.items() if key not in given}
        protocol = Protocol(evaluation.protocol, evaluation.kind, settings)
        known, first = found.setdefault(protocol.id, (protocol, evaluation))
        for key in sorted(known.settings.keys() & settings.keys()):
            if known.settings[key] != settings[key]:
                raise LedgerError(
                    f"{first.path} and {evaluation.path} both say {protocol.id}, but {key} is "
                    f"{known.settings[key]!r} in one and {settings[key]!r} in the other; run one of them again"
                )
    known_protocols = {**{one.id: one for one in published}, **{id_: one for id_, (one, _) in found.items()}}
    return tuple(known_protocols[id_] for id_ in dict.fromkeys(column.protocol for column in columns))
