"""The commands `attack` and `certify`: from a checkpoint and test images to a ledger.

`judge_of` prepares the evaluator of the settings, an entry of `EVALUATORS`, and `records_of` calls it on a block.
Images are cut into fixed blocks. The processes of a torchrun start take one block each, the main one
writes the records in block order, so the ledger has the same lines however many processes made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from hydrabench.bounds import watched
from hydrabench.bounds.exact.saved import kept_in
from hydrabench.data import Block, Choice, ImageSource
from hydrabench.evaluators import EVALUATORS, Computing, EvaluationSettings, at, record_of
from hydrabench.evaluators.flags import flag_texts, has_flags, record_flags
from hydrabench.evaluators.precision import require_precision
from hydrabench.ledger import AttackRecord, Record, RunFolder, whole_ledger
from hydrabench.reporting.statistics import summarize
from hydrabench.runtime import World, environment, exact_arithmetic, operations_per_second, peak_memory
from hydrabench.threat import doubt
from hydrabench.workflows.evaluation.certificates import open_certificates
from hydrabench.workflows.evaluation.continuing import ChosenImages, chosen_images, open_evaluation
from hydrabench.workflows.evaluation.in_turn import Turns
from hydrabench.workflows.evaluation.judging import Judge, Numbered, Points
from hydrabench.workflows.evaluation.keeping import Keeper
from hydrabench.workflows.evaluation.loading import Subject, doubt_of_normalization
from hydrabench.workflows.evaluation.run_folders import ALL
from hydrabench.workflows.evaluation.running_totals import RunningTotals
from hydrabench.workflows.progress import say, tracking
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.writer import one_writer


def evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    out: Path,
    *,
    options: RunOptions,
    n: int | None = None,
    among: Choice = ALL,
    indices: Sequence[int] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Evaluate the first `n` test images (all if None), or those at `indices` alone, and return the summary.

    Args:
        subject: the network to judge.
        settings: which evaluator, at which radius; see `hydrabench.evaluators`.
        out: the run folder.
        resume: go on with what it holds, also with more images than that was started with.
        among: every so many-th image, or those of a file, of which `n` takes the first.
        indices: explicit images; reports refuse such a run, because they are no sample.
    Raises: HydrabenchError for bad input before anything is written, or for a bound or output that
        is not finite, or too little memory; the blocks done until then stay in the ledger.
    """
    world = World()
    EVALUATORS[settings.kind].require(subject.network, settings)
    require_precision(settings.kind, subject.precision)
    images = subject.test_images(options)
    chosen = chosen_images(images, replace(among, n=n), indices, settings)
    selection = ChosenImages(images, chosen, explicit=bool(indices))
    judge = judge_of(subject, settings, images, options)
    _check(judge, selection, options, world)
    return _judge_into(out, judge, selection, world, resume=resume)


def _judge_into(out: Path, judge: Judge, selection: ChosenImages, world: World, *, resume: bool) -> dict[str, Any]:
    """Start or continue the run in the folder `out`, finish it, and return its summary."""
    subject, settings = judge.subject, judge.settings
    with one_writer(out, world):
        opened = world.on_main(
            lambda: open_evaluation(
                out, judge.header(world), selection, settings, environment=environment(subject.device), resume=resume
            )
        )
        if opened.run.is_complete:
            if world.is_main:
                say(f"{out} is complete already")
            return opened.run.summary()
        flags = judge.flags(selection.blocks(judge.blocks.size)[0])
        _fill(opened.run, judge, world, opened.blocks, opened.whole)
        return world.on_main(lambda: _conclude(opened.run, judge, selection, flags))


def judge_of(subject: Subject, settings: EvaluationSettings, images: ImageSource, options: RunOptions) -> Judge:
    """Prepare the evaluator of the settings for a network, once for all blocks of `images`.

    Raises: ConfigError if the run is to keep adversarial images and the evaluator has none.
    """
    computing = Computing(subject.device, subject.precision, options.computing, subject.parent)
    return Judge(subject, settings, images, EVALUATORS[settings.kind].ready(subject.network, settings, computing))


def _check(judge: Judge, selection: ChosenImages, options: RunOptions, world: World) -> None:
    """Raise for what can be known to go wrong, and give the judge the certificates of --skip-certified, if any."""
    subject, chosen = judge.subject, selection.indices
    if world.is_main and (warned := doubt_of_normalization(subject, judge.images)):
        say(warned)
    if subject.parent is not None:
        subject.parent.require_images(judge.images, chosen)
    if (skip := options.computing.get("skip_certified")) is not None:
        judge.certificates = held = open_certificates(Path(skip), subject, judge.settings, judge.images, chosen)
        part = f", and {len(held.beyond)} none at the smaller radii" if held.beyond else ""
        spared = len(held.known) - len(held.beyond)
        if world.is_main:
            say(f"{spared} of {len(chosen)} images need no attack{part}: verified by {held.name}")
    judge.check(selection.blocks(judge.blocks.size)[0])


def _fill(run: RunFolder, judge: Judge, world: World, blocks: Sequence[tuple[int, ...]], whole: int) -> None:
    """Compute and append the records of all blocks after the first `whole`, with a progress line."""
    total, done = sum(map(len, blocks)), sum(map(len, blocks[:whole]))
    settings = judge.settings
    title = f"{settings.protocol} {judge.subject.name}{at(settings)}"
    totals = RunningTotals(settings, run.records() if done else ())
    warning = None
    if judge.blocks.may_be_slow and world.is_main:
        warning = judge.blocks.warning(settings.kind, total - done, operations_per_second(judge.subject.device))
    values = dict(settings)
    for note in (warning, doubt(values["norm"], values["epsilon"]) if "epsilon" in values else None):
        if note and world.is_main:
            say(note)
    if not judge.evaluator.repeatable(settings) and world.is_main:
        say(f"{settings.protocol} depends on how fast this machine is: another run may give other verdicts")
    with (
        exact_arithmetic(),
        tracking(title, total=total, done=done, visible=world.is_main) as advance,
        watched(lambda moment: advance(0, f"{moment} · {judge.current()}  {totals}")),
        kept_in(run.path, f"rank{world.rank}"),
    ):
        left = list(enumerate(blocks))[whole:]
        if judge.evaluator.in_turn is not None:
            Turns(run, judge, world, left, advance, totals).finish()
            return
        keeper = Keeper(run, judge) if judge.keeps else None
        if keeper is not None:
            world.on_main(keeper.settle)
        for parts in _rounds(world, judge, left):
            kept = [one[0] if keeper is None else world.on_main(partial(keeper.records, *one)) for one in parts]
            records = [record for part in kept for record in part]
            if world.is_main:
                run.append(records)
                totals.add([asdict(record) for record in records])
                advance(len(records), str(totals))


def _rounds(world: World, judge: Judge, blocks: Numbered) -> Iterator[list[tuple[list[Record], Points]]]:
    """Yield the records and examples of `world.size` blocks at a time, block by block, in order, on every process."""
    for start in range(0, len(blocks), world.size):
        work = partial(records_of, judge, blocks[start + world.rank : start + world.rank + 1])
        yield [part for part in world.share(work) if part[0]]


def records_of(judge: Judge, blocks: Numbered) -> tuple[list[Record], Points]:
    """Judge some blocks, of which a process has one in a round, or none in the last.

    Returns: the records, in order, and the adversarial examples by image, of a run that keeps them.
    """
    records: list[Record] = []
    examples: Points = {}
    for number, indices in blocks:
        held, certified = judge.certificates, judge.certified(indices)
        parts = held.in_part(indices) if held else {}
        apart = {*certified, *(index for part in parts.values() for index in part)}
        mine = list(certified.values())
        rest = tuple(index for index in indices if index not in apart)
        for beyond, part in [(None, rest), *parts.items()]:
            found, points = _evaluated(judge, number, part, beyond) if part else ([], None)
            if points is not None:
                plain = judge.settings.plain()
                broken = [row for row, one in enumerate(found) if one.example_within(plain) is not None]
                examples |= {found[row].index: points[row].cpu() for row in broken}
            mine += found
        records += sorted(mine, key=lambda record: record.index)
    return records, examples


def _evaluated(
    judge: Judge, number: int, indices: tuple[int, ...], beyond: EvaluationSettings | None
) -> tuple[Sequence[Record], Tensor | None]:
    """The records of images of one block, and the points that broke them, of a run that keeps them.

    Args: beyond: settings of the radii that a certificate of these images does not cover; None: it covers none.
    """
    with judge.block(number, indices) as block:
        if beyond is not None:
            return _evaluated_beyond(judge, block, beyond)
        if judge.keeps and judge.ready.points is not None:
            return judge.ready.points(block)
        return judge.ready.evaluate(block), None


def _evaluated_beyond(judge: Judge, block: Block, beyond: EvaluationSettings) -> tuple[Sequence[Record], Tensor | None]:
    points: Tensor | None = None
    if judge.keeps and judge.evaluator.points is not None:
        found, points = judge.evaluator.points(judge.subject.network, block, beyond)
    else:
        found = judge.evaluator.evaluate(judge.subject.network, block, beyond)
    assert judge.certificates is not None
    name = judge.certificates.name
    return [replace(cast("AttackRecord", record), certified_by=name) for record in found], points


def _conclude(run: RunFolder, judge: Judge, selection: ChosenImages, flags: Mapping[str, float]) -> dict[str, Any]:
    """Summarise the whole ledger, read back from the disk.

    Args: flags: of the network; those of an attack's records are added.
    Raises: LedgerError if an image has no record or several, or a record cannot be.
    """
    settings, device = judge.settings, judge.subject.device
    records = whole_ledger(run, selection.indices, record_of(settings))
    more = judge.evaluator.more(settings, selection.images.shape, records)
    if has_flags(judge.evaluator):
        found = {**flags, **record_flags(records, settings)}
        more = {**more, "flags": found}
        for text in flag_texts(found):
            say(f"flagged: {text}")
    ended: dict[str, Any] = {"peak_memory": peak_memory(device)}
    if judge.keeps:
        ended["adversarial"] = Keeper(run, judge).describe()
    run.finish({**summarize(settings.kind, records, settings), **more}, **ended)
    return run.summary()
