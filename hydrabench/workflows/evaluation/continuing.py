"""Start, resume or extend an evaluation: which records stay, after a check that they are about the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydrabench.data import Choice, ImageSource, block_indices, choose
from hydrabench.data.choosing import PICKED, require_indices
from hydrabench.data.identity import identities
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.evaluators import EVALUATORS, EvaluationSettings, record_of
from hydrabench.ledger import Record, RunFolder, check_record, find_run, fingerprint, open_run
from hydrabench.selection import describe_selection, selected_indices
from hydrabench.workflows.progress import say


@dataclass(frozen=True)
class ChosenImages:
    """The images that are evaluated: data-set indices in ascending order, `explicit` if they were named one by one."""

    images: ImageSource
    indices: tuple[int, ...]
    explicit: bool = False

    def first(self, n: int) -> ChosenImages:
        """The first `n` of them."""
        return ChosenImages(self.images, self.indices[:n], self.explicit)

    def describe(self, known: str, cuts: Sequence[int]) -> dict[str, Any]:
        """Return the entry `dataset` of `run.json`. known: the fingerprint of the images. cuts: see `blocks`."""
        named = {"indices": list(self.indices)} if self.explicit else describe_selection(self.indices)
        grown = {"cuts": list(cuts)} if cuts else {}
        described = {"name": self.images.name, "split": self.images.split, "n": len(self.indices)}
        classes: tuple[str, ...] = getattr(self.images, "names", ())
        own = {"class_names": list(classes)} if classes else {}
        return {**described, **named, "fingerprint": known, **grown, **own}

    def blocks(self, size: int, cuts: Sequence[int] = ()) -> list[tuple[int, ...]]:
        """Cut them into blocks of `size`, beginning anew at each of `cuts`, positions in ascending order."""
        ends = [*cuts, len(self.indices)]
        parts = [self.indices[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
        return [tuple(part[i] for i in block) for part in parts for block in block_indices(len(part), size)]


def chosen_images(
    images: ImageSource, choice: Choice, indices: Sequence[int], settings: EvaluationSettings
) -> tuple[int, ...]:
    """Return the indices of the images to evaluate, in ascending order."""
    if not indices:
        return choose(images, choice)
    if choice != Choice():
        raise ConfigError(PICKED)
    if not EVALUATORS[settings.kind].by_image(settings):
        raise ConfigError(
            f"{settings.protocol} judges whole blocks of images, so no image has a verdict of its own; use -n"
        )
    require_indices(images, indices)
    return tuple(sorted(set(indices)))


@dataclass(frozen=True)
class Opened:
    """A run whose first `whole` blocks are in its ledger."""

    run: RunFolder
    blocks: list[tuple[int, ...]]
    whole: int


def open_evaluation(
    out: Path,
    header: Mapping[str, Any],
    selection: ChosenImages,
    settings: EvaluationSettings,
    *,
    environment: Mapping[str, Any],
    resume: bool,
) -> Opened:
    """Start the run in `out`, or continue what it holds, also with more images than it was started with.

    Args:
        header: what `run.json` says, but for images and environment.
        settings: of the evaluation. environment: versions and hardware.
    Raises: LedgerError if `out` holds another run, records of other images, or records that cannot be.
    """
    known = identities(selection.images, selection.indices)
    found = find_run(out, resume=resume)
    old = found.header.get("dataset", {}) if found else {}
    kept = selection.first(_kept(old, selection))
    cuts = old.get("cuts", [])
    size = len(kept.indices)
    dataset = kept.describe(fingerprint(known[:size]), cuts)
    run = _open(out, {**header, "dataset": dataset}, settings, resume=resume)
    if run.is_complete:
        run.require_intact()
    check = _Check(run, record_of(settings), dict(zip(selection.indices, known, strict=True)))
    blocks = kept.blocks(header["block_size"], cuts)
    whole = run.keep_whole_blocks(blocks, check)
    if size < len(selection.indices):
        blocks = _grow(run, selection, settings, done=sum(map(len, blocks[:whole])), known=fingerprint(known))
        whole = run.keep_whole_blocks(blocks)
        say(f"{out} grows from {size} to {len(selection.indices)} images; {sum(map(len, blocks[:whole]))} are kept")
    elif run.header["status"] == "complete" and run.lost():
        say(f"{out} was complete, but {' and '.join(run.lost())} is gone; what is missing is made again")
    if not run.is_complete:
        changes = run.note_environment(environment, first_record=sum(map(len, blocks[:whole])))
        if changes:
            say(f"{out} goes on with {', '.join(changes)}; its run.json says which records each made")
    return Opened(run, blocks, whole)


def _open(out: Path, header: Mapping[str, Any], settings: EvaluationSettings, *, resume: bool) -> RunFolder:
    """Start or continue a run, also one from before some settings could be set, if they have their declared defaults.

    Its protocol id, which names the version of the procedure and every other value, must be the same.
    """
    fields = type(settings).model_fields
    defaults = {key: one for key, one in settings.plain().items() if getattr(settings, key) == fields[key].default}
    run = open_run(out, header, resume=resume, defaults=defaults)
    if lacking := {key: one for key, one in defaults.items() if key not in run.header["settings"]}:
        named = ", ".join(f"{key} {value}" for key, value in lacking.items())
        say(f"{out} is from before these settings, which count as their defaults there: {named}")
    return run


def _kept(old: Mapping[str, Any], selection: ChosenImages) -> int:
    """Return how many of the chosen images the run had chosen before; all of them if it cannot be extended."""
    size = len(selection.indices)
    if selection.explicit != ("indices" in old):
        return size
    try:
        before = list(selected_indices(old))
    except ValueError:
        return size
    return len(before) if before == list(selection.indices[: len(before)]) else size


@dataclass(frozen=True)
class _Check:
    """Checks a record that is kept; `known` has the hash of the pixels and the label by index."""

    run: RunFolder
    kind: type[Record]
    known: Mapping[int, tuple[str, int]]

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Raises: LedgerError if the record cannot be, or is about another image."""
        record = check_record(self.run, values, self.kind)
        if (record.input_sha, record.label) != self.known[record.index]:
            raise LedgerError(
                f"{self.run.path} has a record of image {record.index} with other pixels or another label than here; "
                "use the data it was started with, or choose a new --out"
            )


def _grow(
    run: RunFolder, selection: ChosenImages, settings: EvaluationSettings, *, done: int, known: str
) -> list[tuple[int, ...]]:
    """Extend a run to more images and return its blocks; new blocks start after the first `done` images.

    Where a block is judged as a whole, as by the first version of AutoAttack, records of a partial block are dropped.
    """
    size = run.header["block_size"]
    cuts = [cut for cut in run.header["dataset"].get("cuts", []) if cut < done]
    blocks = selection.blocks(size, cuts)
    if done not in {0, *accumulate(map(len, blocks))} and EVALUATORS[settings.kind].by_image(settings):
        cuts.append(done)
        blocks = selection.blocks(size, cuts)
    run.reopen(dataset=selection.describe(known, cuts))
    return blocks
