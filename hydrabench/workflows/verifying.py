"""The command `verify`: compute a sample of a run's records again, and judge its stored adversarial examples afresh."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydrabench.checkpoints import read_zoo
from hydrabench.data import ImageSource, load_images
from hydrabench.errors import CheckpointError, ConfigError, LedgerError
from hydrabench.evaluators import EvaluationSettings, record_of, recorded_settings
from hydrabench.files import sha256_of
from hydrabench.ledger import Examples, Record, RunFolder, check_record, read_run, whole_ledger
from hydrabench.runtime import exact_arithmetic
from hydrabench.selection import selected_indices
from hydrabench.workflows.evaluation.continuing import ChosenImages
from hydrabench.workflows.evaluation.evaluate import judge_of, records_of
from hydrabench.workflows.evaluation.judging import Judge
from hydrabench.workflows.evaluation.loading import Subject, open_subject, with_parent
from hydrabench.workflows.evaluation.opening import open_model
from hydrabench.workflows.evaluation.request import ModelRequest
from hydrabench.workflows.progress import tracking
from hydrabench.workflows.run_options import RunOptions

SAMPLE = 50
SEARCHED = 4  # how many folders above a run may hold its checkpoint


@dataclass(frozen=True)
class Finding:
    """One record that was computed again, or one example that was judged again, and what is not as it was."""

    index: int
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"image {self.index}: {'; '.join(self.differences) or 'as recorded'}"


@dataclass(frozen=True)
class Verification:
    """The findings about a run. records: of the sample. examples: all that the run has stored."""

    records: tuple[Finding, ...]
    examples: tuple[Finding, ...] = ()

    @property
    def differing(self) -> list[Finding]:
        """The findings that differ from the run."""
        return [one for one in (*self.records, *self.examples) if one.differences]


@dataclass(frozen=True)
class NetworkSource:
    """The places of a run's networks, where they differ from what the run says.

    ref: the checkpoint; None: what the run names, found by its hash. described: what a file of others does not say of
    itself, see `open_checkpoint`. reuse: the parent's run, of a run of `certify --reuse`. parent: its checkpoint; None:
    what that run names. model: the network, of a run of --model.
    """

    ref: str | None = None
    described: Mapping[str, Any] = field(default_factory=dict)
    reuse: Path | None = None
    parent: str | None = None
    model: ModelRequest | None = None


def verify_run(
    path: Path,
    *,
    options: RunOptions,
    sample: int = SAMPLE,
    seed: int = 0,
    network: NetworkSource | None = None,
    subject: Subject | None = None,
) -> Verification:
    """Compute a random sample of a run's records again, with the same settings, images and random streams.

    Verdicts are compared exactly, numbers up to the tolerances of `ledger.records`. The whole ledger is checked first,
    as `report` does. All adversarial examples that it stores are judged afresh.

    Args:
        path: a finished run of `attack` or `certify`.
        sample: how many records, >= 1; all if there are no more. seed: of the sample.
        network: where the run's network is, if the run does not say it. subject: that network, opened, with its images.
    Raises: LedgerError if the run cannot be used or was altered; CheckpointError if its checkpoint is not to be found,
        or is another.
    """
    if sample < 1:
        raise ConfigError(f"--sample {sample}: give 1 or more records")
    run = read_run(path)
    settings, chosen, records = _contents(run)
    picked = random.Random(seed).sample(records, min(sample, len(records)))
    options = replace(options, computing=_as_recorded(run.header))
    if subject is None:
        subject = _open_network(run, network or NetworkSource(), options)
        images = load_images(run.header["dataset"]["name"], "test", options.data_dir, download=options.download)
    else:
        _require_same_network(run, subject, subject.name, "give that network")
        images = subject.test_images(options)
    judge = judge_of(subject, settings, images, options)
    _require_same_noise(run, judge)
    found = recompute(judge, sorted(picked, key=lambda record: record.index), chosen)
    return Verification(tuple(found), tuple(replay_examples(judge, run, records)) if run.keeps_examples else ())


def _contents(run: RunFolder) -> tuple[EvaluationSettings, Sequence[int], list[Record]]:
    """Read the settings, chosen images and records of a finished run. Raises: LedgerError if it is not whole."""
    path, header = run.path, run.header
    if header.get("command") not in ("attack", "certify") or not run.is_complete:
        raise LedgerError(f"{path} is no finished run of attack or certify; verify checks the records of such a run")
    run.require_intact()
    settings = recorded_settings(header["settings"], header["protocol"], f"{path / 'run.json'}: settings")
    kind = record_of(settings)
    try:
        chosen = selected_indices(header["dataset"])
    except ValueError as error:
        raise LedgerError(f"{path / 'run.json'}: {error}; make the run again") from error
    return settings, chosen, [check_record(run, record, kind) for record in whole_ledger(run, chosen, kind)]


def replay_examples(judge: Judge, run: RunFolder, records: Sequence[Record]) -> Iterator[Finding]:
    """Judge all stored examples of a run, and yield what was found about each.

    Args: records: all of the run.
    """
    plain = judge.settings.plain()
    within = {one.index: most for one in records if (most := one.example_within(plain)) is not None}
    left = set(within)
    for shard, examples in run.examples:
        rows = [row for row, image in enumerate(shard.images) if image in left]
        for image in [image for image in shard.images if image not in left]:
            told = "is there twice" if image in within else "is there, but its record has none"
            yield Finding(image, (f"a stored adversarial image {told}",))
        left -= set(shard.images)
        if not rows:
            continue
        part = Examples(tuple(shard.images[row] for row in rows), examples.pixels[rows])
        for row, image, again in zip(rows, part.indices, judge.replay(part, within), strict=True):
            problem, said = again.problem, shard.predictions[row]
            if problem is None and again.prediction != said:
                problem = f"is classified as {again.prediction}, the list says {said}"
            yield Finding(image, (f"its stored adversarial image {problem}",) if problem else ())
    for image in sorted(left):
        yield Finding(image, ("its record says broken, but no adversarial image of it is stored",))


def recompute(judge: Judge, records: Sequence[Record], chosen: Sequence[int]) -> list[Finding]:
    """Compute some records again and compare them.

    Args: records: in ascending order of their images. chosen: all images of their run.
    """
    size, wanted = judge.blocks.size, {record.index: record for record in records}
    selection = ChosenImages(judge.images, tuple(wanted if judge.evaluator.by_image(judge.settings) else chosen))
    blocks = [(n, block) for n, block in enumerate(selection.blocks(size)) if not wanted.keys().isdisjoint(block)]
    title = f"verify {judge.settings.protocol} {judge.subject.name}"
    found = []
    with exact_arithmetic(), tracking(title, total=len(records)) as advance:
        for block in blocks:
            again = [record for record in records_of(judge, [block])[0] if record.index in wanted]
            found += [Finding(new.index, tuple(wanted[new.index].differences(new))) for new in again]
            advance(len(again), f"{sum(bool(one.differences) for one in found)} differ")
    return found


def open_judge(ref: str, settings: EvaluationSettings, images: ImageSource, options: RunOptions) -> Judge:
    """A checkpoint and settings, ready to compute records."""
    return judge_of(open_subject(ref, options=options), settings, images, options)


def _as_recorded(header: dict[str, Any]) -> dict[str, Any]:
    """Return the options under which the run computed its forward passes and drew its noise."""
    flags = {name: bool(header.get(name, False)) for name in ("compile", "channels_last", "fold_batch_norm")}
    return {**flags, "noise": "cpu" if header.get("noise", "cpu") == "cpu" else "device"}


def _require_same_noise(run: RunFolder, judge: Judge) -> None:
    there, here = run.header.get("noise"), judge.ready.header.get("noise")
    if there not in (None, here):
        raise LedgerError(f"the noise of {run.path} was drawn on {there}, here it would be {here}; verify it there")


def _open_network(run: RunFolder, network: NetworkSource, options: RunOptions) -> Subject:
    """Load the run's checkpoint, and with it the parent's run where certificates were reused.

    Raises: CheckpointError or LedgerError if one is not given or to be found, or is another.
    """
    known = run.header.get("reused")
    subject = _open_subject(run, network, options)
    if known is None and network.reuse is None:
        return subject
    if known is None:
        raise ConfigError(f"{run.path} reuses no certificates; leave --reuse out")
    if network.reuse is None:
        raise LedgerError(f"{run.path} reuses the certificates of {known['checkpoint']}; name that run with --reuse")
    subject = with_parent(subject, network.reuse, network.parent)
    assert subject.parent is not None
    if subject.parent.describe()["records_sha256"] != known["records_sha256"]:
        raise LedgerError(f"{network.reuse} is not the run whose certificates {run.path} reuses: its records differ")
    return subject


def _open_subject(run: RunFolder, network: NetworkSource, options: RunOptions) -> Subject:
    """Load what the run judged: what --model names, or a checkpoint. Raises: CheckpointError if it is another."""
    about, precision = run.header["checkpoint"], run.header["precision"]
    if network.model is not None:
        request = replace(network.model, dataset=network.model.dataset or run.header["dataset"]["name"])
        ref, remedy = request.spec, "name that network with --model"
        subject = open_model(request, options=options, precision=precision)
    elif about.get("external") and network.ref is None:
        raise CheckpointError(f"{run.path} judged a network of other code; name it again: {_options(about)}")
    else:
        ref, remedy = network.ref or _find_checkpoint(run), "name that checkpoint with --ckpt"
        subject = open_subject(ref, options=options, precision=precision, described=network.described)
    _require_same_network(run, subject, ref, remedy)
    return subject


def _options(about: Mapping[str, Any]) -> str:
    """Return the options that named a network of other code, as far as the header of a run says them."""
    arguments = [f"--model-args {key}={value}" for key, value in about.get("arguments", {}).items()]
    weights = ["--weights FILE"] if "weights_sha256" in about else []
    normalization = ["(and --normalization, if it was given)"] if about.get("normalization") else []
    return " ".join([f"--model {about.get('spec', about['arch'])}", *arguments, *weights, *normalization])


def _require_same_network(run: RunFolder, subject: Subject, name: str, remedy: str) -> None:
    found, wanted = subject.checkpoint.sha256, run.header["checkpoint"]["sha256"]
    if found != wanted:
        raise CheckpointError(f"{name} has SHA-256 {found[:16]}…, {run.path} was made with {wanted[:16]}…; {remedy}")


def _find_checkpoint(run: RunFolder) -> str:
    """A path or zoo id of the run's checkpoint, known by its hash. Raises: CheckpointError if there is none."""
    about = run.header["checkpoint"]
    for name, entry in read_zoo().items():
        if entry.sha256 == about["sha256"]:
            return name
    for path in _candidates(run.path, about["name"]):
        if path.is_file() and sha256_of(path) == about["sha256"]:
            return str(path)
    raise CheckpointError(
        f"the checkpoint of {run.path}, {about['name']} with SHA-256 {about['sha256'][:16]}…, is not to be found; "
        "name it with --ckpt"
    )


def _candidates(run: Path, name: str) -> Iterator[Path]:
    """Yield the places where a checkpoint of that name may lie: here, or in the folders above the run."""
    names = dict.fromkeys((name, Path(name).name))
    for folder in (Path(), *run.resolve().parents[:SEARCHED]):
        for one in names:
            yield folder / one / "checkpoint.safetensors"
            yield folder / f"{one}.safetensors"
            yield folder / one
