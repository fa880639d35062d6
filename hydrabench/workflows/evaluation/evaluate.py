"""The commands `attack` and `certify`: from a checkpoint and test images to a ledger.

Images are cut into fixed blocks. The processes of a torchrun start take one block each, the main one
writes the records in block order, so the ledger has the same lines however many processes made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydrabench.bounds import watched
from hydrabench.config import EvaluationSettings, SmoothingSettings, at, doubt_of
from hydrabench.data import Choice, ImageSource, block_indices, choose, load_block, load_images
from hydrabench.errors import ConfigError, DataError
from hydrabench.ledger import Record, RunFolder, open_run
from hydrabench.reporting.statistics import summarize
from hydrabench.runtime import World, exact_arithmetic
from hydrabench.selection import describe_selection
from hydrabench.workflows.evaluation.blocks import Job
from hydrabench.workflows.evaluation.loading import Subject
from hydrabench.workflows.evaluation.preflight import require_precision, require_rules
from hydrabench.workflows.evaluation.running_totals import Tally, radii_of
from hydrabench.workflows.progress import say, tracking
from hydrabench.workflows.run_options import RunOptions

ALL = Choice()


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
        settings: which evaluator, at which radius; see `hydrabench.config`.
        out: the run folder. resume: go on with what it holds.
        among: every so many-th image, or those of a file, of which `n` takes the first.
        indices: explicit images; reports refuse such a run, because they are no sample.
    Raises: HydrabenchError for bad input before anything is written, or for a bound or output that
        is not finite, or too little memory; the blocks done until then stay in the ledger.
    """
    world = World()
    require_rules(subject.network, settings)
    require_precision(subject.precision, settings)
    images = load_images(subject.checkpoint.header.dataset, "test", options.data_dir, download=options.download)
    chosen = _chosen(images, replace(among, n=n), indices, settings)
    job = Job(subject, settings, images, options)
    blocks = [tuple(chosen[i] for i in block) for block in block_indices(len(chosen), job.blocks.size)]
    if subject.parent is not None:
        subject.parent.require_images(images, chosen)
    job.check(blocks[0])
    header = {**job.header(world), "dataset": _describe_selection(images, chosen, explicit=bool(indices))}
    run, whole = world.on_main(lambda: _open(out, header, blocks, resume=resume))
    if run.is_complete:
        if world.is_main:
            say(f"{out} is complete already")
        return run.summary()
    _fill(run, job, world, blocks, whole)
    return world.on_main(lambda: _conclude(run, settings, images))


def _fill(run: RunFolder, job: Job, world: World, blocks: Sequence[tuple[int, ...]], whole: int) -> None:
    """Append the records of all blocks but the first `whole` to the ledger, and show how far that is."""
    total, done = sum(map(len, blocks)), sum(map(len, blocks[:whole]))
    title = f"{job.settings.protocol} {job.subject.name}{at(job.settings)}"
    tally = Tally(job.settings, run.records() if done else ())
    warning = job.blocks.warning(job.settings.kind, total - done)
    for note in (warning, doubt_of(job.settings)):
        if note and world.is_main:
            say(note)
    with (
        exact_arithmetic(),
        tracking(title, total=total, done=done, visible=world.is_main) as advance,
        watched(lambda moment: advance(0, f"{moment} · {job.current()}  {tally}")),
    ):
        for records in _rounds(world, job, list(enumerate(blocks))[whole:]):
            if world.is_main:
                run.append(records)
                tally.add([asdict(record) for record in records])
                advance(len(records), str(tally))


def _chosen(
    images: ImageSource, choice: Choice, indices: Sequence[int], settings: EvaluationSettings
) -> tuple[int, ...]:
    """Which images to evaluate, in ascending order."""
    if not indices:
        return choose(images, choice)
    if choice != ALL:
        raise ConfigError("--index names the images one by one; leave -n, --skip and --ids out")
    if settings.kind == "autoattack":
        raise ConfigError("AutoAttack draws by whole blocks of images, so no image has a verdict of its own; use -n")
    strange = [index for index in indices if not 0 <= index < len(images)]
    if strange:
        raise DataError(
            f"--index {strange[0]} is outside 0..{len(images) - 1}, the {images.split} images of {images.name}"
        )
    return tuple(sorted(set(indices)))


def _describe_selection(images: ImageSource, chosen: Sequence[int], *, explicit: bool) -> dict[str, Any]:
    """What `run.json` says of the images."""
    described = {"name": images.name, "split": images.split, "n": len(chosen)}
    return {**described, **({"indices": list(chosen)} if explicit else describe_selection(chosen))}


def _open(
    out: Path, header: dict[str, Any], blocks: Sequence[tuple[int, ...]], *, resume: bool
) -> tuple[RunFolder, int]:
    """Start or continue the run and return how many whole blocks its ledger holds."""
    run = open_run(out, header, resume=resume)
    return run, len(blocks) if run.is_complete else run.keep_whole_blocks(blocks)


def _rounds(world: World, job: Job, blocks: list[tuple[int, tuple[int, ...]]]) -> Iterator[list[Record]]:
    """Yield the records of `world.size` blocks at a time, in block order, on every process."""
    for start in range(0, len(blocks), world.size):
        work = partial(job.records, blocks[start + world.rank : start + world.rank + 1])
        yield [record for records in world.share(work) for record in records]


def _conclude(run: RunFolder, settings: EvaluationSettings, images: ImageSource) -> dict[str, Any]:
    """Summarise the whole ledger, read back from the disk; with each radius, the L∞ radius that it implies."""
    summary = summarize(settings.kind, list(run.records()), radii=radii_of(settings))
    if isinstance(settings, SmoothingSettings) and settings.mode != "predict":
        coordinates = load_block(images, 0, (0,)).images.numel()
        summary["implied_linf"] = {f"{radius:g}": radius / math.sqrt(coordinates) for radius in settings.radii}
    run.finish(summary)
    return run.summary()
