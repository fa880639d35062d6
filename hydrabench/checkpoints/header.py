"""The header of a checkpoint: JSON inside the safetensors file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from hydrabench.config import Density, Normalization, described
from hydrabench.config.fields import Section
from hydrabench.errors import CheckpointError

Layout = Literal["dense", "masked", "compact"]
PhaseLabel = Literal["train", "prune", "finetune", "lwm"]
CHECKPOINT_SCHEMA: Literal["hydrabench.checkpoint/2"] = "hydrabench.checkpoint/2"  # 1 left out what had its default


# Sizes beyond any image or number of classes overflow before they could be compared with those of the tensors.
Side = Annotated[int, Field(gt=0, le=1 << 16)]
Classes = Annotated[int, Field(gt=0, lt=1 << 31)]


class BestEpoch(Section):
    """The epoch that was kept, and by which number: `metric` is a fraction of the images of `split`."""

    split: str
    images: PositiveInt
    metric: str
    value: float
    epoch: PositiveInt


class PluginFile(Section):
    """A plugin that was loaded when the file was written."""

    file: str
    sha256: str


class HeldOut(Section):
    """The images that training did not see. fraction: of the training set. sha256: of them, `source_fingerprint`."""

    fraction: float = Field(gt=0, lt=1)
    sha256: str


class CodeOfOthers(Section):
    """The code that builds a network which is not of the registry, beside its specification, the header's `arch`.

    arguments: that it is given by keyword. file_sha256: of the file that defines it; None for a library.
    version: of the library.
    """

    arguments: dict[str, Any] = Field(default_factory=dict)
    file_sha256: str | None = None
    version: str | None = None


class Header(Section):
    """Everything needed to rebuild the network and to know where it comes from. It holds no times.

    objective: the settings that it was trained with, as plain values.
    density: fraction of the weights kept in every layer, 1 for an unpruned network; where the layers have
    other budgets, the fraction that was asked for overall.
    kept: these budgets, as the number of weights that each layer keeps; None: n - floor((1 - density) n).
    layout: "dense" holds the plain torch.nn keys, pruned weights being zero; "masked" also holds
    `NAME.scores` and `NAME.mask` beside each `NAME.weight`, whose pruned entries keep their values; "compact" holds the
    dense tensors without their zeros (see compact.py).
    plugins: those that were loaded; without them the file is not opened.
    held_out: of the phase that wrote it; what it is pruned or fine-tuned with must hold out these or some of them.
    code: of a network that is not of the registry; then `arch` is its specification, such as "mynet.py:build".
    parent: SHA-256 of the checkpoint that this one started from.
    phase: "imported" for a network that somebody else's code trained; then objective, recipe, recipe_sha256,
    seed and selection are None.
    """

    schema_: Literal["hydrabench.checkpoint/1", "hydrabench.checkpoint/2"] = Field(
        default=CHECKPOINT_SCHEMA, alias="schema"
    )
    layout: Layout
    phase: PhaseLabel | Literal["imported"]
    arch: str
    dataset: str
    shape: tuple[Side, Side, Side]
    num_classes: Classes
    normalization: Normalization | None
    density: Density
    objective: dict[str, Any] | None
    recipe: str | None
    recipe_sha256: str | None
    seed: int | None
    selection: BestEpoch | None
    parent: str | None
    kept: dict[str, PositiveInt] | None = None
    plugins: tuple[PluginFile, ...] = ()
    code: CodeOfOthers | None = None
    held_out: HeldOut | None = None

    @field_validator("objective")
    @classmethod
    def has_a_name(cls, objective: dict[str, Any] | None) -> dict[str, Any] | None:
        """Its settings are not checked again: a network can be judged where its objective is not known."""
        if objective is not None and not isinstance(objective.get("name"), str):
            raise ValueError("needs a name")
        return objective

    def to_json(self) -> str:
        """Return the header as canonical JSON."""
        return self.model_dump_json(by_alias=True)

    def default_threat(self) -> dict[str, Any]:
        """The norm and radius, or noise, that the network was trained for; empty if for none, or if it is unknown."""
        values = self.objective or {}
        return {key: values[key] for key in ("norm", "epsilon", "sigma") if key in values}


def shown(text: object, most: int = 80) -> str:
    """Return untrusted text fit to print: one line, at most `most` characters, no control characters."""
    words = text if isinstance(text, str) else type(text).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(words[: 4 * most].split()))[:most]


def read_header(text: str, source: str) -> Header:
    """Check and return a header. Raises: CheckpointError naming `source` and what is wrong."""
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        problems = shown(described(error, list(Header.model_fields)), 400)
        raise CheckpointError(f"{source} has a header this version cannot read: {problems}") from error
