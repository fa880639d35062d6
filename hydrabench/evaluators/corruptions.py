"""Accuracy on corrupted images: the fifteen common corruptions at five severities, made by `imagecorruptions-imaug`.

They are that library's definitions, whose severities are ImageNet-C's: on images of 32 x 32 pixels they are stronger
than those of the published CIFAR-10-C, and numbers of the two are not comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt

from hydrabench.config.protocol import unless
from hydrabench.errors import ConfigError, HydrabenchError
from hydrabench.evaluators.ball_settings import SEED
from hydrabench.evaluators.clean import clean_logits, require_finite
from hydrabench.evaluators.description import (
    Computing,
    EvaluationSettings,
    Evaluator,
    Line,
    Metric,
    Ready,
    clean_metric,
)
from hydrabench.ledger import CORRUPTIONS, SEVERITIES, CorruptionRecord

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from hydrabench.data.images import Block

SMALLEST_SIDE = 32  # pixels that the library takes
SEEDED_APART = ("glass_blur", "impulse_noise")  # these draw from generators of their own
PACKAGE = "imagecorruptions-imaug"
Corrupt = Callable[..., "np.ndarray[Any, Any]"]


class CorruptionSettings(EvaluationSettings):
    """The fifteen common corruptions at severities 1 to 5. seed: of their noise, by image, corruption and severity."""

    kind: Literal["corruptions"] = "corruptions"
    seed: NonNegativeInt = 0

    @property
    def protocol(self) -> str:
        """`corruptions-imaug@1` is all of them, seed 0."""
        return f"corruptions-imaug{unless(0, 's', self.seed)}@1"


def evaluate_corruptions(network: nn.Module, block: Block, settings: CorruptionSettings) -> list[CorruptionRecord]:
    """Classify every image under every corruption and severity.

    The noise of each is drawn under a seed of its own, so that an image's record does not depend on the others; the
    global random state of numpy, which the library draws from, is left as found.

    Args:
        network: classifier in eval mode, on the device and in the precision of `block.images`, (B, 3, H, W).
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Hendrycks and Dietterich (2019), arXiv:1903.12261.
    """
    import torch

    corrupt, started = library(), perf_counter()
    predictions = clean_logits(network, block).argmax(1).tolist()
    labels = block.labels.tolist()
    levels = (block.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    right: list[dict[str, list[bool]]] = [{name: [] for name in CORRUPTIONS} for _ in labels]
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            with torch.no_grad():
                logits = network(_corrupted(levels, block, settings, corrupt, name, severity))
            require_finite(logits, block.indices, f"a logit under {name}")
            for row, found in enumerate((logits.argmax(1) == block.labels).tolist()):
                right[row][name].append(found)
    seconds = (perf_counter() - started) / len(labels)
    return [
        CorruptionRecord(index, block.shas[row], labels[row], predictions[row], seconds, right=right[row])
        for row, index in enumerate(block.indices)
    ]


def _corrupted(
    levels: np.ndarray[Any, Any], block: Block, settings: CorruptionSettings, corrupt: Corrupt, name: str, severity: int
) -> Tensor:
    """Return the corrupted images of a block, (B, C, H, W), in [0, 1]."""
    import numpy as np
    import torch

    made = []
    for image, index in zip(levels, block.indices, strict=True):
        seed = _seed_of(f"{settings.seed} {index} {name} {severity}")
        own = {"seed": seed} if name in SEEDED_APART else {}
        with _seeded(seed):
            made.append(corrupt(image, corruption_name=name, severity=severity, **own))
    pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return (pixels.float() / 255).to(block.images).contiguous()


def _seed_of(key: str) -> int:
    """Return 31 bits of a hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") >> 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block."""
    import numpy as np

    before = np.random.get_state()  # noqa: NPY002  (the library draws from it)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def library() -> Corrupt:
    """Return the library's function. Raises: HydrabenchError that says how to get it."""
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise HydrabenchError(
            f"corruptions need the package {PACKAGE}, which is not installed; run: "
            "pip install 'hydrabench[corruptions]'"
        ) from error
    found: Corrupt = corrupt
    return found


def _require_library(_network: Any, _settings: Any) -> None:
    library()


def _require_images(_network: nn.Module, block: Block, _settings: Any) -> None:
    """Raise ConfigError for images that the library does not take."""
    _, channels, height, width = block.images.shape
    if channels != 3 or min(height, width) < SMALLEST_SIDE:
        raise ConfigError(
            f"corruptions are defined for RGB images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got "
            f"{channels} x {height} x {width}; give another --dataset"
        )


def _prepare(network: nn.Module, settings: Any, _computing: Computing) -> Ready:
    from importlib.metadata import PackageNotFoundError, version

    try:
        made_by = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        made_by = "imagecorruptions of unknown version"
    return Ready(lambda block: evaluate_corruptions(network, block, settings), {"corruptions": made_by})


def _metrics(lines: Sequence[Line], _settings: Any) -> dict[str, Metric]:
    def mean(line: Line, names: Sequence[str]) -> float:
        verdicts = [verdict for name in names for verdict in line["right"][name]]
        return float(sum(verdicts) / len(verdicts))

    found = {"clean_accuracy": clean_metric(lines)}
    found["corruption_accuracy"] = Metric(tuple(mean(line, CORRUPTIONS) for line in lines), "t", label="mean")
    for name in CORRUPTIONS:
        values = tuple(mean(line, (name,)) for line in lines)
        found[f"corrupted@{name}"] = Metric(values, "t", label=name)
    return found


COMMON_CORRUPTIONS = Evaluator(
    settings=CorruptionSettings,
    evaluate=evaluate_corruptions,
    record=CorruptionRecord,
    metrics=_metrics,
    claims="clean",
    command="attack",
    heading="corruptions",
    meaning="mean accuracy on corrupted images over five severities, which are ImageNet-C's; this is not CIFAR-10-C",
    passes=lambda _settings, _sizes: 1 + len(CORRUPTIONS) * len(SEVERITIES),
    options=(SEED,),
    require=_require_library,
    suits=_require_images,
    prepare=_prepare,
)
