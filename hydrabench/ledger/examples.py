"""Adversarial examples that a run keeps: shards of safetensors, and the list that says what each holds.

RUN/adversarial/00000.safetensors, ...   `index`, int64 (N,), and `pixels`, (N, C, H, W), float32, or float64 where the
                                         run computed in it: images that the network misclassifies, bit by bit
RUN/adversarial/index.jsonl              one line a shard: file, SHA-256, images, and the class of each example

A shard is on the disk, whole, before its line is; its line is there before the records or attempts that it belongs to.
What a killed run left without a record is removed when the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from hydrabench.errors import LedgerError
from hydrabench.files import replacing, sha256_of, write_text

if TYPE_CHECKING:
    import numpy as np

ADVERSARIAL = "adversarial"  # the value of --keep, and the folder inside the run's
LIST = f"{ADVERSARIAL}/index.jsonl"
EDITED = "the stored examples were altered; run the same command again into a new --out"


@dataclass(frozen=True)
class Shard:
    """One file of examples. images: data-set indices, ascending. predictions: the class of each example."""

    file: str
    sha256: str
    images: tuple[int, ...]
    predictions: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Examples in memory. indices: of their images. pixels: (N, C, H, W), in [0, 1]."""

    indices: tuple[int, ...]
    pixels: np.ndarray[Any, Any]


class ExampleStore:
    """The examples in one run folder."""

    def __init__(self, run: Path) -> None:
        self.folder, self.list = run / ADVERSARIAL, run / LIST

    def start(self) -> None:
        """Make an empty list if there is none, so that a run that broke nothing says so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.list.touch()

    def shards(self) -> list[Shard]:
        """Read the list; a torn last line counts as not written. Raises: LedgerError if it is no such list."""
        try:
            raw = self.list.read_bytes()
        except FileNotFoundError as error:
            raise LedgerError(f"{self.list} is missing; {EDITED}") from error
        found = []
        for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                shard = _READER.validate_json(line)
            except ValidationError as error:
                raise LedgerError(f"{self.list}, line {number}, describes no shard; {EDITED}") from error
            if Path(shard.file).name != shard.file or len(shard.images) != len(shard.predictions):
                raise LedgerError(f"{self.list}, line {number}, describes no shard; {EDITED}")
            found.append(shard)
        return found

    def images(self) -> list[int]:
        """Return the images of which there is an example, in the order of the list."""
        return [image for shard in self.shards() for image in shard.images]

    def write(self, examples: Examples) -> str:
        """Write a shard that is not listed yet. Returns: the name of its file."""
        import numpy as np  # noqa: PLC0415  (only runs that keep examples need it)
        from safetensors.numpy import save_file  # noqa: PLC0415

        there = [int(path.stem) for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()]
        name = f"{max(there, default=-1) + 1:05d}.safetensors"
        tensors = {"index": np.array(examples.indices, dtype=np.int64), "pixels": np.ascontiguousarray(examples.pixels)}
        with replacing(self.folder / name) as scratch:
            save_file(tensors, scratch)
        return name

    def add(self, file: str, examples: Examples, predictions: Sequence[int]) -> None:
        """Put a shard that was written on the list, and wait until that is on the disk."""
        shard = Shard(file, sha256_of(self.folder / file), examples.indices, tuple(predictions))
        with self.list.open("ab") as file_of_list:
            file_of_list.write(_line(shard).encode())
            file_of_list.flush()
            os.fsync(file_of_list.fileno())

    def discard(self, file: str) -> None:
        """Remove a shard that is not listed."""
        (self.folder / file).unlink()

    def read(self, file: str) -> Examples:
        """Read one shard. Raises: LedgerError if it cannot be one."""
        from safetensors import SafetensorError  # noqa: PLC0415
        from safetensors.numpy import load_file  # noqa: PLC0415

        try:
            tensors = load_file(self.folder / file)
            index, pixels = tensors["index"], tensors["pixels"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"{self.folder / file} is no shard of examples; {EDITED}") from error
        if index.ndim != 1 or pixels.ndim != 4 or len(index) != len(pixels) or pixels.dtype.name not in _DTYPES:
            raise LedgerError(f"{self.folder / file} is no shard of examples; {EDITED}")
        return Examples(tuple(index.tolist()), pixels)

    def __iter__(self) -> Iterator[tuple[Shard, Examples]]:
        """Yield each shard of the list with its examples. Raises: LedgerError if they are of other images."""
        for shard in self.shards():
            examples = self.read(shard.file)
            if examples.indices != shard.images:
                raise LedgerError(f"{self.folder / shard.file} holds other images than {self.list.name} says; {EDITED}")
            yield shard, examples

    def require_intact(self) -> None:
        """Compare each shard with its hash. Raises: LedgerError naming the one that is missing or was altered."""
        for shard in self.shards():
            path = self.folder / shard.file
            if not path.is_file():
                raise LedgerError(f"{path} is missing, with the examples of {_images(shard)}; {EDITED}")
            if (found := sha256_of(path)) != shard.sha256:
                raise LedgerError(
                    f"{path} has SHA-256 {found[:16]}…, {self.list.name} says {shard.sha256[:16]}…: examples of "
                    f"{_images(shard)}; {EDITED}"
                )

    def require_images(self, broken: Collection[int]) -> None:
        """Raise LedgerError unless there is one example of each image of `broken`, and no other."""
        found = self.images()
        if lacking := sorted(set(broken) - set(found)):
            raise LedgerError(f"{self.folder} has no example of image {lacking[0]}, whose record says broken; {EDITED}")
        if strange := sorted(set(found) - set(broken)):
            raise LedgerError(f"{self.folder} has an example of image {strange[0]}, whose record has none; {EDITED}")
        if len(found) > len(broken):
            raise LedgerError(f"{self.folder} has two examples of one image; {EDITED}")

    def settle(self, broken: Collection[int]) -> None:
        """Keep the examples of the images that have a record or an attempt, and remove what a killed run left besides.

        Raises: LedgerError if a shard was altered, or an image of `broken` has no example.
        """
        self.start()
        self.require_intact()
        wanted, kept = set(broken), []
        for shard in self.shards():
            rows = [row for row, image in enumerate(shard.images) if image in wanted]
            wanted -= set(shard.images)
            if len(rows) == len(shard.images):
                kept.append(shard)
            elif rows:
                kept.append(self._part(shard, rows))
        if kept != self.shards():
            write_text(self.list, "".join(map(_line, kept)))
        listed = {shard.file for shard in kept}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in listed:
                path.unlink()
        self.require_images(broken)

    def _part(self, shard: Shard, rows: Sequence[int]) -> Shard:
        """Write some examples of a shard into one of their own, not listed yet."""
        whole = self.read(shard.file)
        examples = Examples(tuple(shard.images[row] for row in rows), whole.pixels[list(rows)])
        file = self.write(examples)
        predictions = tuple(shard.predictions[row] for row in rows)
        return Shard(file, sha256_of(self.folder / file), examples.indices, predictions)


_READER = TypeAdapter(Shard)
_DTYPES = ("float32", "float64")


def _line(shard: Shard) -> str:
    return json.dumps(asdict(shard)) + "\n"


def _images(shard: Shard) -> str:
    return f"images {shard.images[0]} to {shard.images[-1]}" if shard.images else "no image"
