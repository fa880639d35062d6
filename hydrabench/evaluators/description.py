"""The description of an evaluator: one frozen `Evaluator` each, which all other packages read.

The command line, `run.json`, the report, the gate and the dry run know evaluators by these descriptions alone. These
modules must not import torch at the top: torch, bounds, attacks and smoothing are imported inside functions.

Settings with these names mean the same to every evaluator: `norm` and `epsilon` a ball, `epsilons` all radii of a
security curve, whose largest is `epsilon`, `sigma` the noise of smoothing,
`radii` the radii at which certificates are counted, `samples` the most draws for an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hydrabench.config.fields import Section
from hydrabench.evaluators.blocks import Blocks, fixed_blocks
from hydrabench.evaluators.replaying import fresh_classes
from hydrabench.ledger import Attempt, Record
from hydrabench.threat import Threat

if TYPE_CHECKING:
    from fractions import Fraction

    import torch
    from torch import Tensor, nn

    from hydrabench.data.images import Block

# Settings that tell columns of one protocol apart; all others are fixed by the protocol id.
CONDITIONS = ("norm", "epsilon", "epsilons", "sigma", "radii")
ALWAYS_NAMED = ("norm", "epsilon", "sigma", "radii", "alpha")  # what no report may fill in
Line = Mapping[str, Any]  # one record, as its ledger has it


class EvaluationSettings(Section):
    """Base of the settings of an evaluator: an entry of `evaluate:`, or the options of `attack` and `certify`.

    A subclass narrows `kind` to its keys in `EVALUATORS`: `kind: Literal["pgd"] = "pgd"`.
    """

    kind: str

    @property
    def protocol(self) -> str:
        """The protocol id, which names exactly how a number is made.

        It spells out every setting that differs from the protocol's default, but for `CONDITIONS`, so that numbers of
        different procedures never share a column.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a property `protocol`")

    @property
    def unused(self) -> frozenset[str]:
        """The settings that mean nothing beside the others, such as those of a method that is not called."""
        return frozenset()


@dataclass(frozen=True)
class Metric:
    """One metric: the contribution of each image, and how to compute its interval.

    values: one for each record, in order: truth values, or numbers >= 0 of which the mean is taken.
    interval: "wilson" of a fraction, "clopper-pearson" of one that claims a guarantee, "t" of a mean.
    radius: the certified radius that it is about, in pixel units.
    label: what its heading adds.
    column_of: the evaluator whose column it belongs to, if that is another one.
    epsilon: the radius of the ball that it is about, if that is not the run's.
    desired: whether it is good for an image to have it.
    """

    values: tuple[float, ...]
    interval: Literal["wilson", "clopper-pearson", "t"] = "wilson"
    radius: float | None = None
    label: str = ""
    column_of: str | None = None
    epsilon: Fraction | None = None
    desired: bool = True


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    name: with underscores.
    kind: how the text is read; "list" is cut at commas, "repeated" may also be given again and again, and "several"
        makes a run of each value.
    heading: of its part of --help.
    role: "setting"; "computing" says how, and changes no protocol; "source" is where a run starts from.
    default: what --help shows, None: nothing.
    setting: its name in the settings, if that differs.
    sets: the setting that a flag stands for, and its value.
    against: options that mean nothing beside it, because it `means`.
    needs: an option without which it means nothing.
    """

    name: str
    help: str
    kind: Literal["text", "int", "float", "flag", "folder", "list", "repeated", "several"] = "text"
    heading: str = ""
    role: Literal["setting", "computing", "source"] = "setting"
    default: str | None = None
    setting: str = ""
    sets: tuple[str, str] | None = None
    against: tuple[str, ...] = ()
    means: str = ""
    needs: str = ""

    @property
    def flag(self) -> str:
        """As it is typed, "--time-limit"."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Sizes:
    """The sizes that an evaluation's cost depends on.

    flops: floating-point operations of one forward pass of one image. symbolic: how many forward passes the
    symbolic bounds of one image take, if every neuron is bounded. classes: outputs.
    """

    flops: float
    symbolic: float
    classes: int


@dataclass(frozen=True)
class Computing:
    """The options of a run beside its settings, which change no number.

    options: those of role "computing" that were given. parent: the opened run whose certificates are reused.
    """

    device: torch.device
    precision: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    parent: Any = None


@dataclass(frozen=True)
class Ready:
    """An evaluator ready to run.

    evaluate: judges a block. header: further entries of `run.json`. points: judges a block, too, and returns the points
    as well, see `Evaluator.points`.
    """

    evaluate: Callable[[Block], Sequence[Record]]
    header: Mapping[str, Any] = field(default_factory=dict)
    points: Callable[[Block], tuple[Sequence[Record], Tensor]] | None = None


@dataclass(frozen=True)
class InTurn:
    """Several attacks in turn, each on the images that none before it has broken.

    attacks: (settings) -> their names, in order; "clean" first, which classifies the images as they are.
    attempt: (network, block, name, settings, heard) -> one attempt for each image of the block, and its points,
        (B, C, H, W). `heard` is called after every forward pass.
    conclude: (index, SHA-256, label, attempts) -> the record of an image, from its attempts in order.
    passes: (settings, name, classes) -> forward passes of an attack for an image that it does not break.
    closing: (attempts on all images) -> what to tell the user at the end; None: nothing.
    """

    attacks: Callable[[Any], tuple[str, ...]]
    attempt: Callable[..., tuple[list[Attempt], Tensor]]
    conclude: Callable[[int, str, int, Sequence[Attempt]], Record]
    passes: Callable[[Any, str, float], float]
    closing: Callable[[Sequence[Attempt]], str | None] = lambda _attempts: None


def nothing(*_arguments: Any) -> None:
    """Check nothing."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A way of judging networks.

    settings: its model.
    evaluate: (network, block, settings) -> one record for each image, in order. The network is in eval mode, on the
        device and in the precision of the images; a record's `seconds` is its share of the block's time.
    points: the same, and with the records the point that broke each image, (B, C, H, W), which `--keep` stores; of
        images that nothing broke any point.
    classes: (network, block with points in place of its images, settings) -> the class of each point, judged afresh.
    keeps: (settings) -> whether a run stores the points that broke images.
    record: what every line of a ledger has.
    variant: (settings as JSON) -> model and record of a variant that has its own, None if it has not.
    metrics: (lines of a ledger, settings) -> metric by name.
    claims: "upper" bounds the true robust accuracy from above, and its records say `robust`; "lower" from below, by
        records that say `verified`; "smoothed" speaks about the smoothed classifier; "clean" about no ball;
        "smoothed-upper" bounds the smoothed classifier from above.
    command: of the command line, that makes it.
    options: of that command. If there are none, it takes those of other evaluators that are named like its settings;
        --set KEY=VALUE sets the others.
    heading, meaning: for the report, a text or (settings) -> text. Settings read from a ledger lack `CONDITIONS`.
    passes: (settings, sizes) -> forward passes for an image at most; None if that depends on the weights.
    piece: (settings) -> settings of a short run to time, and the images of its block.
    blocks: (settings, network, (C, H, W)) -> how many images are evaluated, and lost when a run is killed, together.
    require: (network, settings) -> None; refuses before anything is loaded what lacks a package or a rule.
    suits: (network, first block, settings) -> None; refuses a network that cannot be judged.
    prepare: (network, settings, computing) -> Ready, if there is more to do once for all blocks.
    reduced_precision: whether verdicts hold whatever the arithmetic of the forward pass.
    frugal: what takes less memory.
    by_image: (settings) -> whether an image's verdict depends on it alone, not on its block.
    in_turn: its attacks one by one, if they can be run and kept so.
    fitted: (settings, classes) -> settings for a network of so many logits, where the protocol depends on it.
    repeatable: (settings) -> whether the same run gives the same verdicts on any machine, but for rounding.
    sampled: whether verdicts rest on random draws that another network, or another seed, would have other luck with.
    notes: (settings and images of each of its columns) -> remarks below a report.
    more: (settings, (C, H, W), lines of the ledger) -> further entries of `summary.json`.
    """

    settings: type[EvaluationSettings]
    evaluate: Callable[..., Sequence[Record]]
    record: type[Record]
    metrics: Callable[[Sequence[Line], Any], dict[str, Metric]]
    claims: Literal["clean", "upper", "lower", "smoothed", "smoothed-upper"]
    command: Literal["attack", "certify"]
    heading: str | Callable[[Any], str]
    meaning: str | Callable[[Any], str]
    passes: Callable[[Any, Sizes], float] | None
    options: tuple[Option, ...] = ()
    points: Callable[..., tuple[Sequence[Record], Tensor]] | None = None
    classes: Callable[[nn.Module, Block, Any], list[int]] = fresh_classes
    keeps: Callable[[Any], bool] = lambda settings: getattr(settings, "keep", None) is not None
    variant: Callable[[Line], tuple[type[EvaluationSettings], type[Record]] | None] = lambda _values: None
    piece: Callable[[Any], tuple[Any, int]] | None = None
    blocks: Callable[[Any, nn.Module, tuple[int, int, int]], Blocks] = fixed_blocks
    require: Callable[[nn.Module, Any], None] = nothing
    suits: Callable[[nn.Module, Block, Any], None] = nothing
    prepare: Callable[[nn.Module, Any, Computing], Ready] | None = None
    reduced_precision: bool = False
    frugal: str = ""
    by_image: Callable[[Any], bool] = lambda _settings: True
    in_turn: InTurn | None = None
    fitted: Callable[[Any, int], Any] = lambda settings, _classes: settings
    repeatable: Callable[[Any], bool] = lambda _settings: True
    sampled: bool = False
    notes: Callable[[Sequence[tuple[Any, int]]], list[str]] = lambda _columns: []
    more: Callable[[Any, tuple[int, int, int], Sequence[Line]], dict[str, Any]] = lambda *_: {}

    def ready(self, network: nn.Module, settings: Any, computing: Computing) -> Ready:
        """Return the function that judges one block after another, prepared once."""
        if self.prepare is not None:
            return self.prepare(network, settings, computing)
        points = self.points
        return Ready(
            lambda block: self.evaluate(network, block, settings),
            points=None if points is None else lambda block: points(network, block, settings),
        )

    def read(self, values: Mapping[str, Any]) -> Any:
        """The settings of a ledger, as JSON has them and not checked again; what it leaves out has its default."""
        return self.settings.model_construct(**values)

    def models(self, values: Mapping[str, Any]) -> tuple[type[EvaluationSettings], type[Record]]:
        """The model of settings that a ledger has, and the class of its records."""
        return self.variant(values) or (self.settings, self.record)

    def conditions(self) -> tuple[str, ...]:
        """Return those of `CONDITIONS` that its settings have."""
        return tuple(name for name in CONDITIONS if name in self.settings.model_fields)

    def needed(self) -> tuple[str, ...]:
        """Return the settings that a ledger must name; all others have their defaults where it does not."""
        return tuple(name for name in ALWAYS_NAMED if name in self.settings.model_fields)


def said(text: str | Callable[[Any], str], settings: Any) -> str:
    """Return a heading or a meaning as text, for the given settings."""
    return text if isinstance(text, str) else text(settings)


def at(settings: Any) -> str:
    """Return what distinguishes columns of one protocol: " at L∞ 8/255", " at σ=0.25", or ""."""
    noise = f" at σ={settings.sigma:g}" if "sigma" in type(settings).model_fields else ""
    if "epsilon" not in type(settings).model_fields:
        return noise
    threat, radii = Threat(settings.norm, settings.epsilon), getattr(settings, "epsilons", ())
    return noise + (f" at {len(radii)} radii up to {threat}" if radii else f" at {threat}")


# Metrics that several evaluators share ---------------------------------------------------------


def is_correct(line: Line) -> bool:
    """Return whether the prediction is the label."""
    return bool(line["prediction"] == line["label"])


def clean_metric(lines: Sequence[Line]) -> Metric:
    """Return the clean accuracy, which every evaluator of the network itself records."""
    return Metric(tuple(map(is_correct, lines)), column_of="clean")


def robust_metrics(lines: Sequence[Line], _settings: Any) -> dict[str, Metric]:
    """Return the metrics of attack records: clean and robust accuracy."""
    robust = tuple(is_correct(line) and bool(line["robust"]) for line in lines)
    return {"clean_accuracy": clean_metric(lines), "robust_accuracy": Metric(robust)}


def verified_metrics(lines: Sequence[Line], _settings: Any) -> dict[str, Metric]:
    """Return the metrics of verification records: clean and verified accuracy."""
    verified = tuple(is_correct(line) and bool(line["verified"]) for line in lines)
    return {"clean_accuracy": clean_metric(lines), "verified_accuracy": Metric(verified, "clopper-pearson")}
