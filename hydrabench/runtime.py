"""The machine: device, arithmetic, keyed random streams, processes started by torchrun."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hydrabench.errors import ConfigError, HydrabenchError

Result = TypeVar("Result")
LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets beside WORLD_SIZE
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
TRAINING_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The state of a fresh generator on the CPU as torch lays it out, and where its 624 words of 32 bits lie, each in 64.
_TWISTER = torch.Generator().manual_seed(0).get_state().numpy()
_WORDS = slice(24, 24 + 624 * 8)


def stream(*key: object, device: torch.device | str = "cpu", version: int = 1) -> torch.Generator:
    """A random generator, on the CPU if no `device` is given, that depends on `key` alone.

    The key is hashed, so streams of different keys are independent for all practical purposes, whatever the order
    in which they are used and in whichever process.

    Args:
        version: how the hash becomes the generator's state on the CPU; elsewhere all 64 bits of the seed count.
            1: through a seed, of which torch's Mersenne twister takes 32 bits: among 3,000 streams two are the same
            with probability 1/1000. Training and the first ledgers were made so. 2: all 19,937 bits of the state are
            drawn from the hash (SHAKE-256).
    """
    text = "\x1f".join(map(str, key)).encode()
    if version == 1 or torch.device(device).type != "cpu":
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
        return torch.Generator(device).manual_seed(seed)
    state = _TWISTER.copy()
    state[_WORDS].view(np.uint64)[:] = np.frombuffer(hashlib.shake_256(text).digest(4 * 624), dtype="<u4")
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return generator


def bits(*key: object) -> np.random.SFC64:
    """A source of 64-bit words on the CPU that depends on `key` alone, by 128 bits of its hash (SHAKE-256)."""
    text = "\x1f".join(map(str, key)).encode()
    return np.random.SFC64(int.from_bytes(hashlib.shake_256(text).digest(16), "little"))


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" takes the GPU of this process if there is one, "cuda" that GPU.

    Raises: ConfigError if the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that cannot give a number back is of no use either
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here; choose cpu, cuda or cuda:N") from error
    return device


def use_threads(count: int) -> None:
    """Compute on `count` CPU threads, >= 1, from now on.

    Sums are then added up in another order, so that last bits differ from those of one thread, and with several
    threads they may differ from run to run.
    """
    torch.set_num_threads(count)


def operations_per_second(device: torch.device) -> float:
    """Return how many multiplications and additions of a convolution a core, or the accelerator, does in a second.

    It is timed now, for some 50 ms, so that a forecast is of this machine; nothing else may depend on it.
    """
    images, weight = torch.rand(8, 64, 32, 32, device=device), torch.rand(64, 64, 3, 3, device=device)
    clock, found = time.process_time if device.type == "cpu" else time.perf_counter, []
    for _ in range(4):
        started = clock()
        total = torch.nn.functional.conv2d(images, weight, padding=1).sum()
        total.item()  # waits for the device
        found.append(clock() - started)
    operations = 2 * weight.numel() * images[:, 0].numel()
    return operations / max(min(found), 1e-9)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch TF32 and other reduced-precision matrix arithmetic off inside the block.

    TF32 rounds operands to 10 bits, which moves bounds and verdicts.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]


def require_exact_arithmetic(device: torch.device) -> None:
    """Raise outside a block of `exact_arithmetic`, so that no bound is computed in reduced precision.

    Raises: ValueError if matrix products or convolutions on `device` may round their operands to TF32 or bfloat16.
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        raise ValueError(
            f"bounds need float32 matrix products as they are, but float32_matmul_precision is {precision!r}, not "
            "'highest'; compute them inside `with runtime.exact_arithmetic():`"
        )
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        raise ValueError(
            "bounds need float32 convolutions as they are, but torch.backends.cudnn.allow_tf32 is True, not False; "
            "compute them inside `with runtime.exact_arithmetic():`"
        )


class World:
    """The processes that share one command: `torchrun` starts several, otherwise there is one.

    Python objects and CPU tensors travel between them through gloo, gradients on GPUs through NCCL where it exists.
    """

    def __init__(self) -> None:
        """Raises: ConfigError if the environment says that there are others, but not how to reach them."""
        self.size = _whole("WORLD_SIZE", 1)
        self.rank = _whole("RANK", 0) if self.size > 1 else 0
        if self.size > 1 and (lacking := [name for name in LAUNCHED if not os.environ.get(name)]):
            raise ConfigError(
                f"WORLD_SIZE is {self.size} but {lacking[0]} is not set, as torchrun would; start with torchrun, or "
                "unset WORLD_SIZE"
            )
        if self.size > 1 and not torch.distributed.is_initialized():
            with_gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo")
            # Threads of it that outlive the interpreter may abort a process whose work is done.
            atexit.register(torch.distributed.destroy_process_group)

    @property
    def is_main(self) -> bool:
        """True if this process writes the files and talks to the user."""
        return self.rank == 0

    def share(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every process and return the results of all, in rank order, on all of them.

        Raises: the first HydrabenchError of any process, on all of them, so that none waits for one that
            has given up.
        """
        if self.size == 1:
            return [work()]
        outcomes: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(outcomes, _outcome(work))
        for outcome in outcomes:
            if isinstance(outcome, HydrabenchError):
                raise outcome
        return outcomes

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do `work` on the main process only and return its result on all of them; errors as in `share`."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [_outcome(work) if self.is_main else None]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], HydrabenchError):
            raise outcome[0]
        return cast("Result", outcome[0])

    def total(self, values: Sequence[float]) -> list[float]:
        """Add the numbers of all processes up, position by position, in float64."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by the sum of those of all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def rows(self, whole: int) -> slice:
        """The part of a batch of `whole` images that is this process's: consecutive, and nearly equal in size."""
        return slice(whole * self.rank // self.size, whole * (self.rank + 1) // self.size)


def _outcome(work: Callable[[], Result]) -> Result | HydrabenchError:
    try:
        return work()
    except HydrabenchError as error:
        return error


def _whole(name: str, default: int) -> int:
    """An environment variable that counts something. Raises: ConfigError if it is no whole number."""
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise ConfigError(f"the environment variable {name} is {text!r}, not a whole number; unset it")
    return int(text)


def peak_memory(device: torch.device) -> int | None:
    """Return the bytes that tensors on a GPU took at most, on a CPU those of the whole process; None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # noqa: PLC0415  (not on Windows)
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a number may depend on, for `run.json`."""
    found = {"python": platform.python_version(), "device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    for package in ("hydrabench", "torch", "torchvision", "numpy", "pyautoattack", "auto_LiRPA"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
