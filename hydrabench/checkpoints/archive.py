"""Checkpoints that come as a zip file with a dense and a masked network in it, as the original HYDRA's do."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from hydrabench.checkpoints.download import MOST_BYTES
from hydrabench.checkpoints.header import shown
from hydrabench.errors import CheckpointError
from hydrabench.files import replacing

Role = Literal["dense", "masked"]
# The original's own naming: the dense twin of NAME.pth.tar is NAME_dense.pth.tar, and importers look for it there.
NAMES: dict[Role, str] = {"dense": "checkpoint_dense", "masked": "checkpoint"}
SUFFIXES = (".pth.tar", ".safetensors", ".pth", ".pt")


def weights_suffix(name: str) -> str | None:
    """The ending of `name` that says it holds weights (".pth.tar"); None if there is none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def unpack_weights(path: Path, folder: Path) -> dict[Role, Path]:
    """Write the dense and the masked checkpoint in a zip file to `folder`, as `checkpoint_dense.*` and `checkpoint.*`.

    A member with "dense" in its file name is the dense one, another with weights the masked one; of several, the one
    whose name starts with "model_best". The names in the zip file are never used as paths, and a file that tries to
    lead out of the folder is refused altogether.
    Raises: CheckpointError if it is not a zip file, is damaged, or holds no weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_safe(member) for member in archive.infolist() if not member.is_dir()]
            found: dict[Role, Path] = {}
            for role, name in NAMES.items():
                member = _choose(members, role)
                if member is not None:
                    target = folder / f"{name}{weights_suffix(member.filename)}"
                    with archive.open(member) as source, replacing(target) as scratch, scratch.open("wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                    found[role] = target
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"what came is not a whole zip file ({error})") from error
    if not found:
        held = ", ".join(sorted(shown(member.filename) for member in members)[:5]) or "nothing"
        raise CheckpointError(f"the zip file holds no weights ({', '.join(SUFFIXES)}); it holds {held}")
    return found


def _safe(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Raise for members that lead out of the folder, are links, or are absurdly large."""
    # ZipInfo turns the separators of this system into "/"; those of others would pass as part of a name.
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if (
        name.is_absolute()
        or ".." in name.parts
        or ":" in "".join(name.parts[:1])
        or stat.S_ISLNK(member.external_attr >> 16)
    ):
        raise CheckpointError(
            f"the zip file holds {shown(member.filename)!r}, which leads out of its folder; nothing was unpacked"
        )
    if member.file_size > MOST_BYTES:
        raise CheckpointError(
            f"the zip file's {shown(member.filename)!r} has {member.file_size} bytes, at most {MOST_BYTES} are allowed"
        )
    return member


def _choose(members: Sequence[zipfile.ZipInfo], role: Role) -> zipfile.ZipInfo | None:
    """The member for a role; None if there is none. Raises: CheckpointError if several could be meant."""
    fitting = []
    for member in members:
        name = PurePosixPath(member.filename).name
        hidden = name.startswith(".") or "__MACOSX" in PurePosixPath(member.filename).parts
        if weights_suffix(name) and not hidden and ("dense" in name.lower()) == (role == "dense"):
            fitting.append(member)
    best = [member for member in fitting if PurePosixPath(member.filename).name.startswith("model_best")]
    if len(fitting) > 1 and len(best) != 1:
        names = ", ".join(shown(member.filename) for member in fitting[:4])
        raise CheckpointError(f"the zip file holds {len(fitting)} {role} checkpoints ({names}), and none stands out")
    return best[0] if len(fitting) > 1 else next(iter(fitting), None)
