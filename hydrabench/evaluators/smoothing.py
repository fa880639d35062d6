"""The description of randomized smoothing; `smoothed` certifies, `reuse` derives from a parent's certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators.ball_settings import SEED
from hydrabench.evaluators.blocks import Blocks
from hydrabench.evaluators.description import Computing, Evaluator, Line, Metric, Option, Ready, is_correct
from hydrabench.evaluators.reuse_settings import ReuseSettings
from hydrabench.evaluators.smoothing_settings import SmoothingSettings
from hydrabench.laws import LAWS
from hydrabench.ledger import ReuseRecord, SmoothedRecord
from hydrabench.threat import NORM_TEXTS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hydrabench.data.images import Block
    from hydrabench.smoothing import Sampling
    from hydrabench.smoothing.forward import Forward

# The draws of one image fill batches if all are made; looks at a few draws of many images fill them together.
FIXED_SIZE_BLOCK, SEQUENTIAL_BLOCK = 1, 32
TIMED_SAMPLES = 2000  # all draws cost the same
NOISE = ("auto", "cpu", "device")
STOPS_EARLY = ("adaptive", "reused")

_CERTIFIED = "right and certified at L2 radius r by randomized smoothing"
MEANINGS = {
    "cohen": f"{_CERTIFIED} (Cohen et al. 2019), without abstaining",
    "adaptive": f"{_CERTIFIED}, at fixed looks that share α; draws stop once each radius is certified or given up, and "
    "with a tolerance once the largest radius is known to within that",
    "reused": f"{_CERTIFIED}, derived from the certificate of a parent network and the votes lost since (incremental "
    "smoothing, arXiv:2305.19521); α covers both",
    "imported": f"{_CERTIFIED}, as read from another tool's table",
    "predict": "right prediction of the smoothed classifier (PREDICT of Cohen et al. 2019), without abstaining",
}
# What "smoothing" alone means elsewhere; the others are named in headings.
HEADINGS = {"cohen": "smoothing", "imported": "smoothing", "reused": "smoothing reuse"}
HOW, REUSE = "Smoothing, how it is computed", "Smoothing, from the certificates of a parent network"
SMOOTHING_OPTIONS = (
    Option(
        "mode",
        "cohen: all draws, and the radius; adaptive: --radii alone, with a tenth of the draws.",
        heading="Smoothing",
        default="cohen",
    ),
    Option(
        "predict",
        "Predict with abstention; certify no radius.",
        "flag",
        "Smoothing",
        sets=("mode", "predict"),
        against=("mode", "radii"),
        means="certifies no radius",
    ),
    Option(
        "sigma",
        "Noise in pixel units; 0.12,0.25: one run each.",
        "several",
        "Smoothing",
        default="the training noise, or 0.25",
    ),
    Option(
        "law",
        "Of the noise: gaussian for L2 radii; uniform or laplace for L1.",
        heading="Smoothing",
        default="gaussian",
    ),
    Option("n0", "Selection samples.", "int", "Smoothing", default="100"),
    Option("samples", "Most estimation samples.", "int", "Smoothing", default="100000"),
    Option(
        "alpha",
        "Failure probability of an image in one run, all radii; n images: n alpha expected to fail.",
        "float",
        "Smoothing",
        default="0.001",
    ),
    Option("radii", "Radii, e.g. 0,0.25,0.5, or auto.", "list", "Smoothing", default="0,0.25,0.5,0.75"),
    SEED,
    Option(
        "tolerance", "With adaptive: draw on until the radius is known to within this, e.g. 0.02.", heading="Smoothing"
    ),
    Option("randomized", "With cohen: a larger bound, of coverage exactly 1 - alpha.", "flag", "Smoothing"),
    Option("rigor", "Smoothing: standard, or discrete: integer noise, sound in floating point.", default="standard"),
    Option("label_aware", "Draw no more if the selection is not the label.", "flag", "Smoothing"),
    Option("batch", "Noisy images in a forward pass.", "int", HOW, "computing", "by their size"),
    Option("noise", "Drawn on cpu, device or auto.", "text", HOW, "computing", "auto"),
    Option("compile", "Run the network through torch.compile.", "flag", HOW, "computing"),
    Option(
        "channels_last",
        "Memory format channels_last: faster on GPUs, and on CPUs with avx512_bf16.",
        "flag",
        HOW,
        "computing",
    ),
    Option("fold_batch_norm", "Merge batch norms into convolutions.", "flag", HOW, "computing"),
    Option("reuse", "Run of mode cohen of nearly the same network, in more bits, say.", "folder", REUSE, "source"),
    Option("parent", "The parent's checkpoint.", "text", REUSE, "source", "the name in its run", needs="reuse"),
    Option("reuse_samples", "Most draws for both networks.", "int", REUSE, default="1/10 of --samples", needs="reuse"),
)


@dataclass(frozen=True)
class SmoothingOptions:
    """Options of smoothing that change its speed, not its protocol.

    compile, channels_last, fold_batch_norm: see `smoothing.forward`. batch: noisy images in one forward pass, None:
    by their size. noise: where it is drawn, "cpu" or "device"; "auto": on a GPU if there is one.
    """

    compile: bool = False
    channels_last: bool = False
    fold_batch_norm: bool = False
    batch: int | None = None
    noise: str = "auto"

    def __post_init__(self) -> None:
        lookup("noise source", dict.fromkeys(NOISE), self.noise)
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch} is no number of images; give 1 or more")

    def forward(self, precision: str) -> Forward:
        """Return how to compute the base classifier."""
        from hydrabench.smoothing.forward import Forward

        return Forward(precision, self.fold_batch_norm, self.channels_last, self.compile)

    def sampling(self, device: torch.device) -> Sampling:
        """Return how to draw for a network on `device`."""
        from hydrabench.smoothing import NoiseSource, Sampling

        on_device = self.noise == "device" or (self.noise == "auto" and device.type == "cuda")
        return Sampling(NoiseSource("device" if on_device else "cpu"), self.batch)


def evaluate(network: nn.Module, block: Block, settings: SmoothingSettings) -> Sequence[SmoothedRecord]:
    """See `smoothed.evaluate_smoothed`."""
    from hydrabench.evaluators.smoothed import evaluate_smoothed

    return evaluate_smoothed(network, block, settings)


def _prepare(network: nn.Module, settings: Any, computing: Computing) -> Ready:
    """Run the base classifier as the options say. With a parent, compare its votes and start from its ledger."""
    from hydrabench.evaluators.reuse import evaluate_reuse
    from hydrabench.evaluators.smoothed import evaluate_smoothed

    options = SmoothingOptions(**computing.options)
    forward, sampling = options.forward(computing.precision), options.sampling(computing.device)
    child, parent = forward.apply(network), computing.parent
    header: dict[str, Any] = {"noise": sampling.source.describe(computing.device), **forward.describe()}
    if parent is None:
        return Ready(lambda block: evaluate_smoothed(child, block, settings, sampling), header)
    parent.require_noise({"precision": computing.precision, **header})
    old, records = parent.forward().apply(parent.network), parent.records
    return Ready(
        lambda block: evaluate_reuse(child, block, settings, sampling, parent=old, ledger=records),
        {**header, "reused": parent.describe()},
    )


def _blocks(settings: SmoothingSettings, _network: nn.Module, _shape: tuple[int, int, int]) -> Blocks:
    return Blocks(FIXED_SIZE_BLOCK if settings.mode in ("cohen", "predict") else SEQUENTIAL_BLOCK)


def metrics(lines: Sequence[Line], settings: Any) -> dict[str, Metric]:
    """Return the metrics of smoothing: certified accuracy at each radius, and the mean radius.

    `certified_accuracy@R` (R written with %g) asks for a correct prediction, no abstention and a radius of at least R;
    whatever is not abstained has a radius above 0, so R = 0 gives the accuracy of the smoothed classifier with
    abstentions counted as wrong (Cohen et al. 2019, section 4). `average_certified_radius` counts 0 for wrong
    predictions and abstentions (Zhai et al. 2020, arXiv:2001.02378, section 3); it is left out where draws stop before
    the radius is known, in mode adaptive without a tolerance. Records of mode "predict" certify no
    radius: `smoothed_accuracy` asks for a correct prediction and no abstention, `abstained` counts those.
    """
    if lines and all(line.get("mode") == "predict" for line in lines):
        right = tuple(is_correct(line) and not line["abstain"] for line in lines)
        abstained = tuple(bool(line["abstain"]) for line in lines)
        return {
            "smoothed_accuracy": Metric(right, "clopper-pearson", label="accuracy"),
            "abstained": Metric(abstained, "clopper-pearson", label="abstained", desired=False),
        }
    earned = [float(line["radius"]) if is_correct(line) and not line["abstain"] else None for line in lines]
    found = {
        f"certified_accuracy@{radius:g}": Metric(
            tuple(r is not None and r >= radius for r in earned), "clopper-pearson", radius, f"r={radius:g}"
        )
        for radius in map(float, settings.radii)
    }
    if any(line.get("mode") == "adaptive" for line in lines) and settings.version > 3 and settings.tolerance is None:
        return found
    means = Metric(tuple(r or 0.0 for r in earned), "t", label="mean radius")
    return {**found, "average_certified_radius": means}


def _heading(settings: Any) -> str:
    mode = HEADINGS.get(settings.mode, f"smoothing {settings.mode}")
    return mode if settings.law == "gaussian" else f"{mode} {settings.law} {NORM_TEXTS[LAWS[settings.law].norm]}"


def _meaning(settings: Any) -> str:
    if settings.law != "gaussian":
        found = MEANINGS[settings.mode].replace("L2 radius", f"{NORM_TEXTS[LAWS[settings.law].norm]} radius")
        return f"{found}, under {settings.law} noise (Yang et al. 2020, arXiv:2002.08118)"
    exact = ", under integer noise, which holds in floating point" * (settings.rigor == "discrete")
    return f"{MEANINGS[settings.mode]}{exact}"


def _notes(columns: Sequence[tuple[Any, int]]) -> list[str]:
    """Return how likely the certificates are wrong, and what a mean radius is worth where draws stop early."""
    found = []
    for alpha in sorted({settings.alpha for settings, _ in columns if settings.alpha is not None}):
        n = max(images for settings, images in columns if settings.alpha == alpha)
        found.append(
            f"Each smoothing certificate fails with probability at most α = {alpha:g}, image by image: among {n:,} "
            f"image{'s' * (n > 1)} at most {alpha * n:g} are expected to be wrong. α covers all radii of one run, "
            "but not a choice made afterwards, such as the best sigma of several. It speaks about the smoothed "
            "classifier, not about the network that is attacked and verified in the other columns."
        )
    if any(settings.mode in STOPS_EARLY for settings, _ in columns):
        found.append(
            "Where draws stop early, a mean radius is what had been certified until then: compare it only under one "
            "protocol."
        )
    return found


def _implied(settings: SmoothingSettings, shape: tuple[int, int, int], _lines: Sequence[Line]) -> dict[str, Any]:
    """The L∞ radius that each L2 radius implies."""
    if settings.mode == "predict" or settings.law != "gaussian":
        return {}
    return {"implied_linf": {f"{radius:g}": radius / sqrt(prod(shape)) for radius in settings.radii}}


def _piece(settings: SmoothingSettings) -> tuple[SmoothingSettings, int]:
    return settings.model_copy(update={"mode": "cohen", "samples": TIMED_SAMPLES, "label_aware": False}), 1


SMOOTHING = Evaluator(
    settings=SmoothingSettings,
    evaluate=evaluate,
    record=SmoothedRecord,
    metrics=metrics,
    claims="smoothed",
    command="certify",
    heading=_heading,
    meaning=_meaning,
    passes=lambda settings, _sizes: settings.n0 + settings.samples,
    piece=_piece,
    options=SMOOTHING_OPTIONS,
    variant=lambda values: (ReuseSettings, ReuseRecord) if values.get("mode") == "reused" else None,
    blocks=_blocks,
    prepare=_prepare,
    reduced_precision=True,
    sampled=True,
    frugal="choose a smaller --batch",
    notes=_notes,
    more=_implied,
)
