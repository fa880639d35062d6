"""The commands `attack` and `certify`: from a checkpoint and test images to a ledger.

Images are cut into fixed blocks. The processes of a torchrun start take one block each, the main one
writes the records in block order, so the ledger has the same lines however many processes made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydrabench.bounds import watched
from hydrabench.bounds.exact.saved import kept_in
from hydrabench.data import Choice
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, at, record_of
from hydrabench.evaluators.description import require_precision
from hydrabench.evaluators.flags import flag_texts, has_flags, record_flags
from hydrabench.ledger import Record, RunFolder, whole_ledger
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
    require_precision(settings.kind, subject.precision, EVALUATORS)
    images = subject.test_images(options)
    chosen = chosen_images(images, replace(among, n=n), indices, settings)
    selection = ChosenImages(images, chosen, explicit=bool(indices))
    if world.is_main and (warned := doubt_of_normalization(subject, images)):
        say(warned)
    judge = Judge(subject, settings, images, options)
    if subject.parent is not None:
        subject.parent.require_images(images, selection.indices)
    _leave_out_certified(judge, options, chosen, world)
    judge.check(selection.blocks(judge.blocks.size)[0])
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


def _leave_out_certified(judge: Judge, options: RunOptions, chosen: Sequence[int], world: World) -> None:
    """Give the judge the certificates of --skip-certified, if there are any. Raises: as `open_certificates`."""
    skip = options.computing.get("skip_certified")
    if skip is None:
        return
    judge.certificates = held = open_certificates(Path(skip), judge.subject, judge.settings, judge.images, chosen)
    if world.is_main:
        say(f"{len(held.known)} of {len(chosen)} images need no attack: verified by {held.name}")


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
        work = partial(judge.judged, blocks[start + world.rank : start + world.rank + 1])
        yield [part for part in world.share(work) if part[0]]


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
