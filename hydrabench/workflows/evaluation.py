"""The commands `attack` and `certify`: from a checkpoint and test images to a ledger.

Images are cut into fixed blocks. The processes of a torchrun start take one block each, the main one
writes the records in block order, so the ledger has the same lines however many processes made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from torch import nn

from hydrabench.bounds import Prepared, prepared, watched
from hydrabench.checkpoints import Checkpoint, checkpoint_name
from hydrabench.config import (
    AlphaCrownSettings,
    EvaluationSettings,
    SmoothingSettings,
    VerifiedSettings,
    at,
    parse,
    with_default_threat,
)
from hydrabench.data import Block, ImageSource, block_indices, first_images, load_block, load_images
from hydrabench.errors import ConfigError, DataError, lookup
from hydrabench.evaluators import EVALUATORS, Evaluator, evaluate_reused, require_readable, require_suitable
from hydrabench.ledger import Record, RunFolder, open_run
from hydrabench.masking import prunable_layers, used_parameters
from hydrabench.reporting.statistics import summarize
from hydrabench.runtime import PRECISIONS, World, environment, exact_arithmetic, pick_device
from hydrabench.threat import Norm
from hydrabench.workflows.blocks import blocks_for
from hydrabench.workflows.fetching import open_checkpoint
from hydrabench.workflows.machine import Machine
from hydrabench.workflows.progress import say, tracking
from hydrabench.workflows.requirements import require_precision, require_rules
from hydrabench.workflows.reuse import Parent, open_parent
from hydrabench.workflows.tally import Tally, radii_of

ATTACKS = ("clean", "pgd", "autoattack")
RADIUS_FREE = ("clean", "smoothing")
# Of weights and images; in bfloat16 only the forward passes of smoothing are computed, see `smoothing.forward`.
STORED_IN = {**PRECISIONS, "bfloat16": torch.float32}


@dataclass(frozen=True)
class Subject:
    """A checkpoint on its device, as it is evaluated: masks baked in, eval mode.

    parent: the run whose certificates are to be reused, for `ReuseSettings`.
    """

    name: str
    checkpoint: Checkpoint
    network: nn.Module
    device: torch.device
    precision: str
    parent: Parent | None = None

    def describe(self) -> dict[str, Any]:
        """What `run.json` says of the checkpoint."""
        header = self.checkpoint.header
        parameters = used_parameters(self.network)
        return {
            "name": self.name,
            "sha256": self.checkpoint.sha256,
            "arch": header.arch,
            "dataset": header.dataset,
            "objective": header.objective.name if header.objective else "unknown",
            "phase": header.phase,
            "density": header.density,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in parameters),
            "prunable_layers": len(prunable_layers(self.network)),
            "bytes": self.checkpoint.path.stat().st_size,
        }


def open_subject(ref: str, *, machine: Machine, precision: str = "float32", name: str | None = None) -> Subject:
    """Load a checkpoint for evaluation.

    Raises: CheckpointError or ConfigError if it, the device or the precision is not to be had.
    """
    dtype = lookup("precision", STORED_IN, precision)
    device = pick_device(machine.device)
    checkpoint = open_checkpoint(ref)
    network = checkpoint.baked().to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Subject(name or checkpoint_name(ref), checkpoint, network, device, precision)


def with_parent(subject: Subject, run: Path, ref: str | None) -> Subject:
    """Add the run of a parent, whose certificates are to be reused; for its Args and Raises see `open_parent`.

    Raises: also CheckpointError if the parent is about other images.
    """
    parent = open_parent(run, ref, device=subject.device, dtype=STORED_IN[subject.precision])
    parent.require_dataset(subject.checkpoint)
    return replace(subject, parent=parent)


def settings_for(subject: Subject, values: Mapping[str, Any]) -> EvaluationSettings:
    """Complete evaluation options with the radius that the checkpoint was trained for, and check them.

    Args:
        values: `kind` and whatever was given of its settings.
    Raises: ConfigError naming every option that is wrong or missing.
    """
    threat = subject.checkpoint.header.default_threat()
    complete = with_default_threat(dict(values), threat) if threat else dict(values)
    known_norm = complete.get("norm", "linf") in get_args(Norm)
    if known_norm and complete["kind"] not in RADIUS_FREE and "epsilon" not in complete:
        raise ConfigError(
            f"{subject.name} names no radius in this norm that it was trained for; add --epsilon, for example "
            f"{'0.25' if complete.get('norm') == 'l2' else '8/255'}"
        )
    return parse(TypeAdapter(EvaluationSettings), complete, complete["kind"])


def evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    out: Path,
    *,
    machine: Machine,
    n: int | None = None,
    indices: Sequence[int] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Evaluate the first `n` test images (all if None), or those at `indices` alone, and return the summary.

    Args:
        subject: the network to judge.
        settings: which evaluator, at which radius; see `hydrabench.config`.
        out: the run folder. resume: go on with what it holds.
        indices: explicit images; reports refuse such a run, because they are no sample.
    Raises: HydrabenchError for bad input before anything is written, or for a bound or output that
        is not finite; the blocks done until then stay in the ledger.
    """
    world = World()
    require_rules(subject.network, settings)
    require_precision(subject.precision, settings)
    images = load_images(subject.checkpoint.header.dataset, "test", machine.data_dir, download=machine.download)
    chosen = _chosen(images, n, indices, settings)
    job = _Job(subject, settings, images, machine)
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


def _fill(run: RunFolder, job: _Job, world: World, blocks: Sequence[tuple[int, ...]], whole: int) -> None:
    """Append the records of all blocks but the first `whole` to the ledger, and show how far that is."""
    total, done = sum(map(len, blocks)), sum(map(len, blocks[:whole]))
    title = f"{job.settings.protocol} {job.subject.name}{at(job.settings)}"
    tally = Tally(job.settings, run.records() if done else ())
    warning = job.blocks.warning(job.settings.kind, total - done)
    if warning and world.is_main:
        say(warning)
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
    images: ImageSource, n: int | None, indices: Sequence[int], settings: EvaluationSettings
) -> tuple[int, ...]:
    """Which images to evaluate, in ascending order."""
    if not indices:
        return tuple(range(first_images(images, n)))
    if n is not None:
        raise ConfigError("-n takes the first images, --index explicit ones; give one of the two")
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
    return {**described, "indices": list(chosen)} if explicit else described


def _open(
    out: Path, header: dict[str, Any], blocks: Sequence[tuple[int, ...]], *, resume: bool
) -> tuple[RunFolder, int]:
    """Start or continue the run and return how many whole blocks its ledger holds."""
    run = open_run(out, header, resume=resume)
    return run, len(blocks) if run.is_complete else run.keep_whole_blocks(blocks)


class _Job:
    """What every block needs: the network as it is run, the settings, the images."""

    def __init__(self, subject: Subject, settings: EvaluationSettings, images: ImageSource, machine: Machine) -> None:
        self.subject, self.settings, self.images = subject, settings, images
        self.blocks = blocks_for(settings, subject.network, images.shape)
        self.indices: tuple[int, ...] = ()  # what is evaluated right now
        self.network: nn.Module | Prepared = subject.network
        self.header_of_smoothing: dict[str, Any] = {}
        if isinstance(settings, VerifiedSettings) and settings.engine == "hydrabench":
            self.network = prepared(subject.network)
        self.how: tuple[Any, ...] = ()
        if settings.kind == "smoothing":
            forward, sampling = machine.smoothing.forward(subject.precision), machine.smoothing.sampling(subject.device)
            self.network, self.how = forward.apply(subject.network), (sampling,)
            self.header_of_smoothing = {"noise": sampling.source.describe(subject.device), **forward.describe()}
        self.evaluate: Evaluator = EVALUATORS[settings.kind]
        if subject.parent is not None:
            parent = subject.parent
            parent.require_arithmetic({"precision": subject.precision, **self.header_of_smoothing})
            self.header_of_smoothing["reused"] = parent.describe()
            self.evaluate = partial(evaluate_reused, parent=forward.apply(parent.network), ledger=parent.records)

    def header(self, world: World) -> dict[str, Any]:
        """What `run.json` says of the evaluation, but for the images."""
        return {
            "command": "attack" if self.settings.kind in ATTACKS else "certify",
            "settings": self.settings.plain(),
            "protocol": self.settings.protocol,
            "checkpoint": self.subject.describe(),
            "precision": self.subject.precision,
            "environment": environment(self.subject.device),
            "block_size": self.blocks.size,
            "world_size": world.size,
            **self.header_of_smoothing,
        }

    def check(self, indices: tuple[int, ...]) -> None:
        """Refuse a network that AutoAttack cannot judge or auto_LiRPA cannot read, going by the first block."""
        if self.settings.kind == "autoattack":
            with exact_arithmetic(), torch.no_grad():
                require_suitable(self.subject.network, self._block(0, indices), self.settings)
        elif isinstance(self.settings, VerifiedSettings | AlphaCrownSettings):
            require_readable(self.subject.network, self._block(0, indices), self.settings)

    def records(self, blocks: Sequence[tuple[int, tuple[int, ...]]]) -> list[Record]:
        """The records of this process's share of a round: one block, or none in the last round."""
        records: list[Record] = []
        for number, self.indices in blocks:
            records += self.evaluate(self.network, self._block(number, self.indices), self.settings, *self.how)
        return records

    def current(self) -> str:
        """Which images are evaluated, for the progress line."""
        first, last = self.indices[0], self.indices[-1]
        return f"image {first}" if first == last else f"images {first} to {last}"

    def _block(self, number: int, indices: tuple[int, ...]) -> Block:
        """Images of the data set, on the device and in the precision of the network."""
        block = load_block(self.images, number, indices)
        return replace(
            block,
            images=block.images.to(device=self.subject.device, dtype=STORED_IN[self.subject.precision]),
            labels=block.labels.to(self.subject.device),
        )


def _rounds(world: World, job: _Job, blocks: list[tuple[int, tuple[int, ...]]]) -> Iterator[list[Record]]:
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
