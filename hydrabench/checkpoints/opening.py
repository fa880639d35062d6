"""Open a checkpoint by its path or zoo id: our own format or one of others."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hydrabench.checkpoints.download import Progress
from hydrabench.checkpoints.foreign.importing import Given, import_checkpoint
from hydrabench.checkpoints.format import Checkpoint, load_checkpoint
from hydrabench.checkpoints.hub import is_on_hub
from hydrabench.checkpoints.manifest import ZooEntry
from hydrabench.checkpoints.peeking import is_torch_file
from hydrabench.checkpoints.zoo import read_zoo, resolve
from hydrabench.errors import ConfigError


def open_ref(
    ref: str,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    density: float | None = None,
    normalization: Given = None,
    model: str | nn.Module | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Resolve and load: one of our files, or one of others.

    Args:
        ref, progress: see `resolve`.
        arch, dataset, density, normalization: of a file of others, see `import_checkpoint`; for a zoo id they are
            taken from the manifest if they are not given. Our files say them themselves.
        model: the code, or a module, for one of our files whose network is not of the registry, see `load_checkpoint`.
    Raises: CheckpointError or ConfigError as `resolve`, `load_checkpoint` and `import_checkpoint` do.
    """
    path = resolve(ref, progress=progress)
    if is_torch_file(path):
        if model is not None:
            if isinstance(model, nn.Module):
                raise ConfigError(f"{ref} is a file of torch.save; load it into the module with load_state_dict")
            raise ConfigError(f"{ref} is a file of torch.save; give --model {model} --weights {ref} in place of --ckpt")
        read = import_checkpoint if Path(ref).exists() or is_on_hub(ref) else partial(read_entry, read_zoo()[ref])
        return read(path, arch=arch, dataset=dataset, density=density, normalization=normalization)
    given = {"--arch": arch, "--dataset": dataset, "--source-density": density, "--normalization": normalization}
    if superfluous := [option for option, value in given.items() if value is not None]:
        raise ConfigError(f"{ref} is a file of ours and says that itself; leave {', '.join(superfluous)} out")
    return load_checkpoint(path, model=model)


def read_entry(entry: ZooEntry, path: Path, **given: Any) -> Checkpoint:
    """Read a file of an entry; the manifest fills in what neither the file nor `given` says.

    Args: given: `arch`, `dataset`, `density`, `normalization`; None where they are not given.
    """
    if not is_torch_file(path):
        return load_checkpoint(path)
    said: dict[str, Any] = {"arch": entry.arch, "dataset": entry.dataset, "density": entry.density}
    said["normalization"] = entry.normalization or "none"
    return import_checkpoint(path, **(said | {key: value for key, value in given.items() if value is not None}))
