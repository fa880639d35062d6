"""The format of the zoo's manifests: one entry for each checkpoint, shipped with hydrabench or released elsewhere.

Two files in the zoo's folder have this format: `manifest.yml`, written by `make zoo`, lists the checkpoints that
come with hydrabench; `released.yml`, written by hand, lists those that others put on the web. The same format as JSON
Schema, for editors and other programs, is `manifest.schema.json` beside them.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hydrabench.config import Density, Normalization, parse
from hydrabench.config.fields import Section
from hydrabench.documents import RECIPE_BYTES, parse_yaml, read_text
from hydrabench.errors import CheckpointError

SHIPPED, RELEASED, SCHEMA = "manifest.yml", "released.yml", "manifest.schema.json"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
WebAddress = Annotated[str, Field(pattern=r"^https?://[^\s/]+/\S*$")]
# No part of an id starts with a dot: ids become folders of the cache.
ZooId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$")]


class ManifestSection(Section):
    """Base of everything in a manifest: an unknown key is refused with the key that was probably meant."""

    @model_validator(mode="before")
    @classmethod
    def name_unknown_keys(cls, values: Any) -> Any:
        """Refuse unknown keys."""
        known = list(cls.model_fields)
        unknown = [key for key in values if key not in known] if isinstance(values, dict) else []
        if unknown:
            close = get_close_matches(str(unknown[0]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are: {', '.join(known)}"
            of = f" of {values['id']}" if isinstance(values.get("id"), str) else ""
            raise ValueError(f"unknown key{of}: {', '.join(map(repr, unknown))}; {hint}")
        return values


class ProtocolResult(ManifestSection):
    """One result of ours: `count` of the first `n` test images hold; `ledger` has one record per image.

    radius: in L2, at which images hold by randomized smoothing; None for balls, which the settings name.
    """

    settings: dict[str, Any]  # of an evaluator, its `kind` included
    n: PositiveInt
    count: NonNegativeInt
    radius: PositiveFloat | None = None
    ledger: str


class PublishedNumber(ManifestSection):
    """A number that others published for this checkpoint, never one of ours.

    value: a fraction in [0, 1]. procedure: how it was measured, as far as the source says.
    """

    metric: Literal["clean_accuracy", "robust_accuracy", "certified_accuracy", "verified_accuracy"]
    value: float = Field(ge=0, le=1)
    procedure: str
    source: str


class ZooEntry(ManifestSection):
    """One checkpoint of the zoo: shipped (`file`) or on the web (`url`).

    file: the checkpoint, relative to the folder of the manifest.
    url, mirrors: where the checkpoint is, in the order in which the addresses are tried.
    archive: "zip" if the addresses give a zip file with a dense and/or a masked checkpoint in it.
    sha256, bytes: of the checkpoint that the id stands for (of an archive: the dense one if there is one). None if
        nobody has published them; the first fetch then writes them to the user's lock file.
    parent: id of the checkpoint that this one was pruned from; None if there is none, or it is not known.
    normalization: what the network does to images in [0, 1] first; None if it takes them as they are.
    additional_data: whether it was trained on images that are not in the data set.
    """

    id: ZooId
    file: str | None = None
    url: WebAddress | None = None
    mirrors: tuple[WebAddress, ...] = ()
    archive: Literal["zip"] | None = None
    sha256: Sha256 | None = None
    bytes: PositiveInt | None = None
    dataset: str
    arch: str
    objective: str
    density: Density
    parent: str | None = None
    recipe: str | None = None
    licence: str
    normalization: Normalization | None = None
    additional_data: bool = False
    note: str | None = None
    published: tuple[PublishedNumber, ...] = ()
    results: tuple[ProtocolResult, ...] = ()

    @model_validator(mode="after")
    def has_one_origin(self) -> ZooEntry:
        """A checkpoint is shipped, and then its hash is known, or it is on the web."""
        if (self.file is None) == (self.url is None):
            raise ValueError(f"{self.id} needs `file` (shipped) or `url` (on the web), and not both")
        if self.file is not None and (self.sha256 is None or self.bytes is None):
            raise ValueError(f"{self.id} is shipped, so it needs `sha256` and `bytes`")
        if self.file is not None and (self.mirrors or self.archive):
            raise ValueError(f"{self.id} is shipped, so `mirrors` and `archive` have no meaning")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The web addresses, in the order in which they are tried; empty for a shipped checkpoint."""
        return () if self.url is None else (self.url, *self.mirrors)


class Manifest(ManifestSection):
    """The list of checkpoints."""

    schema_version: Literal["hydrabench.zoo/1"]
    checkpoints: tuple[ZooEntry, ...]

    @model_validator(mode="after")
    def name_each_once(self) -> Manifest:
        """Refuse an id that stands for two checkpoints."""
        names = [entry.id for entry in self.checkpoints]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two checkpoints have the id {', '.join(twice)}")
        return self


def read_entries(path: Path) -> dict[str, ZooEntry]:
    """Return the entries of one manifest by id.

    Raises: CheckpointError if there is no such file, ConfigError with every problem if it is not valid.
    """
    if not path.is_file():
        raise CheckpointError(f"the zoo's manifest {path} is missing; install hydrabench again")
    return dict(_entries(read_text(path, RECIPE_BYTES), str(path)))


@lru_cache(maxsize=4)
def _entries(text: str, source: str) -> dict[str, ZooEntry]:
    """The entries of a manifest's text; kept, because parsing them takes longer than a short evaluation."""
    return {entry.id: entry for entry in parse(Manifest, parse_yaml(text, source), source).checkpoints}


def json_schema() -> dict[str, Any]:
    """The format of a manifest as JSON Schema; `python tools/make_zoo.py --schema` publishes it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
