"""The commands `attack` and `certify`: from a checkpoint and test images to a ledger.

Images are cut into fixed blocks. The processes of a torchrun start take one block each, the main one
writes the records in block order, so the ledger has the same lines however many processes made it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter
from torch import nn

from hydrabench.bounds import BOUNDS, program_of, read
from hydrabench.checkpoints import Checkpoint, checkpoint_name, open_ref
from hydrabench.config import EvaluationSettings, SmoothingSettings, parse, with_default_threat
from hydrabench.data import ImageSource, block_indices, first_images, load_block, load_images
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import Record, RunFolder, open_run
from hydrabench.masking import prunable_layers, used_parameters
from hydrabench.reporting.statistics import summarize, verdicts
from hydrabench.runtime import PRECISIONS, World, environment, exact_arithmetic, pick_device
from hydrabench.threat import Norm
from hydrabench.workflows.machine import Machine
from hydrabench.workflows.progress import say, tracking

ATTACKS = ("clean", "pgd", "autoattack")
RADIUS_FREE = ("clean", "smoothing")
# Images of a block: what is lost at most when a run is killed. AutoAttack's streams are keyed by block.
BLOCK_SIZES = {"smoothing": 1}
BLOCK_SIZE = 100


@dataclass(frozen=True)
class Subject:
    """A checkpoint on its device, as it is evaluated: masks baked in, eval mode."""

    name: str
    checkpoint: Checkpoint
    network: nn.Module
    device: torch.device
    precision: str

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
    dtype = lookup("precision", PRECISIONS, precision)
    device = pick_device(machine.device)
    checkpoint = open_ref(ref)
    network = checkpoint.baked().to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Subject(name or checkpoint_name(ref), checkpoint, network, device, precision)


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
            f"{subject.name} names no radius in this norm that it was trained for; add --epsilon, for example 8/255"
        )
    return parse(TypeAdapter(EvaluationSettings), complete, complete["kind"])


def default_folder(subject: Subject, settings: EvaluationSettings) -> Path:
    """Where a run goes if the user names no folder: runs/evaluations/CHECKPOINT/PROTOCOL-RADIUS."""
    return Path("runs") / "evaluations" / subject.name / run_name(settings)


def run_name(settings: EvaluationSettings) -> str:
    """A folder name that tells protocols and radii apart."""
    values = settings.model_dump(mode="json")
    parts = [settings.protocol.replace("@", "-v")]
    parts += [values["norm"]] if values.get("norm", "linf") != "linf" else []
    parts += [str(values["epsilon"]).replace("/", "_")] if "epsilon" in values else []
    parts += [f"sigma{values['sigma']:g}"] if "sigma" in values else []
    return "-".join(parts)


def require_rules(network: nn.Module, settings: EvaluationSettings) -> None:
    """Refuse a network that the bound of `settings` cannot pass, before anything is computed or written.

    Args:
        network: in eval mode.
    Raises: UnsupportedLayerError naming the first layer without a rule.
    """
    if settings.kind in BOUNDS:
        read(program_of(network))


def evaluate(
    subject: Subject,
    settings: EvaluationSettings,
    out: Path,
    *,
    machine: Machine,
    n: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Evaluate the first `n` test images (all if None) and return the summary.

    Args:
        subject: the network to judge.
        settings: which evaluator, at which radius; see `hydrabench.config`.
        out: the run folder. resume: go on with what it holds.
    Raises: HydrabenchError for bad input before anything is written, or for a bound or output that
        is not finite; the blocks done until then stay in the ledger.
    """
    world = World()
    require_rules(subject.network, settings)
    images = load_images(subject.checkpoint.header.dataset, "test", machine.data_dir, download=machine.download)
    count = first_images(images, n)
    size = BLOCK_SIZES.get(settings.kind, BLOCK_SIZE)
    blocks = block_indices(count, size)
    header = _run_header(subject, settings, count, world)
    run, whole = world.on_main(lambda: _open(out, header, blocks, resume=resume))
    if run.is_complete:
        if world.is_main:
            say(f"{out} is complete already")
        return run.summary()
    done = sum(map(len, blocks[:whole]))
    title = f"{settings.protocol} {subject.name}"
    tally = _Tally(settings, run.records() if done else ())
    with exact_arithmetic(), tracking(title, total=count, done=done, visible=world.is_main) as advance:
        for records in _rounds(world, subject, settings, images, list(enumerate(blocks))[whole:]):
            if world.is_main:
                run.append(records)
                tally.add([asdict(record) for record in records])
                advance(len(records), str(tally))
    return world.on_main(lambda: _conclude(run, settings))


def _open(out: Path, header: dict[str, Any], blocks: list[tuple[int, ...]], *, resume: bool) -> tuple[RunFolder, int]:
    """Start or continue the run and return how many whole blocks its ledger holds."""
    run = open_run(out, header, resume=resume)
    return run, len(blocks) if run.is_complete else run.keep_whole_blocks(blocks)


def _rounds(
    world: World,
    subject: Subject,
    settings: EvaluationSettings,
    images: ImageSource,
    blocks: list[tuple[int, tuple[int, ...]]],
) -> Iterator[list[Record]]:
    """Yield the records of `world.size` blocks at a time, in block order, on every process."""
    for start in range(0, len(blocks), world.size):
        mine = blocks[start + world.rank : start + world.rank + 1]
        work = partial(_evaluate_blocks, subject, settings, images, mine)
        yield [record for records in world.share(work) for record in records]


def _evaluate_blocks(
    subject: Subject, settings: EvaluationSettings, images: ImageSource, blocks: Sequence[tuple[int, tuple[int, ...]]]
) -> list[Record]:
    """The records of this process's share of a round: one block, or none in the last round."""
    records: list[Record] = []
    for number, indices in blocks:
        block = load_block(images, number, indices)
        moved = replace(
            block,
            images=block.images.to(device=subject.device, dtype=PRECISIONS[subject.precision]),
            labels=block.labels.to(subject.device),
        )
        records += EVALUATORS[settings.kind](subject.network, moved, settings)
    return records


def _conclude(run: RunFolder, settings: EvaluationSettings) -> dict[str, Any]:
    """Summarise the whole ledger, read back from the disk."""
    run.finish(summarize(settings.kind, list(run.records()), radii=_radii(settings)))
    return run.summary()


class _Tally:
    """Running means of the fractions that the summary will hold, for the progress line."""

    def __init__(self, settings: EvaluationSettings, records: Iterable[Mapping[str, Any]]) -> None:
        self.settings = settings
        self.seen = 0
        self.sums: dict[str, float] = defaultdict(float)
        self.add(list(records))

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count the records of one more block."""
        self.seen += len(records)
        for metric, values in verdicts(self.settings.kind, records, _radii(self.settings)).items():
            if "accuracy" in metric:
                self.sums[metric] += sum(values)

    def __str__(self) -> str:
        shown = [f"{name.replace('_accuracy', '')} {total / self.seen:.1%}" for name, total in self.sums.items()]
        return ", ".join(shown[:4])


def _radii(settings: EvaluationSettings) -> tuple[float, ...]:
    return settings.radii if isinstance(settings, SmoothingSettings) else ()


def _run_header(subject: Subject, settings: EvaluationSettings, count: int, world: World) -> dict[str, Any]:
    """What `run.json` says of an evaluation."""
    return {
        "command": "attack" if settings.kind in ATTACKS else "certify",
        "settings": settings.plain(),
        "protocol": settings.protocol,
        "checkpoint": subject.describe(),
        "dataset": {"name": subject.checkpoint.header.dataset, "split": "test", "n": count},
        "precision": subject.precision,
        "environment": environment(subject.device),
        "block_size": BLOCK_SIZES.get(settings.kind, BLOCK_SIZE),
        "world_size": world.size,
    }
