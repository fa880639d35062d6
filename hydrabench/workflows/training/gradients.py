"""The gradients of one optimizer step: by micro-batches, summed over processes, in smaller parts if memory runs out.

However a batch is cut, its gradient is that of the mean loss over all its images, up to rounding. Batch norm alone
sees the difference: each part is normalised by itself, each updates the running statistics, and these are averaged
over the processes after every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from hydrabench.errors import MemoryShortageError, is_out_of_memory
from hydrabench.masking import shared_masks, used_modules
from hydrabench.objectives import OBJECTIVES, ObjectiveSettings, StepLoss, TrainingStep
from hydrabench.runtime import World
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.forward_pass import ForwardPass
from hydrabench.workflows.training.micro_batches import MicroBatch, cut, halved

StepOf = Callable[[slice | None, int | None], TrainingStep]


@dataclass(frozen=True)
class Outcome:
    """The result of a step on the images of this process.

    loss: their part of the mean loss over the whole batch; the processes' parts add up to it.
    correct: number of images classified correctly.
    afters: callbacks of the objective, to be called once the gradients are known to be finite.
    """

    loss: float
    correct: int
    afters: tuple[Callable[[], None], ...]


class Gradients:
    """Computes the gradients of an objective with respect to the trained parameters of a network."""

    def __init__(
        self,
        network: nn.Module,
        objective: ObjectiveSettings,
        *,
        options: RunOptions,
        device: torch.device,
        world: World,
    ) -> None:
        """Prepare for `network`, which is on `device` and in its phase."""
        self.network = network
        self.device = device
        self.world = world
        self.micro_batch = options.micro_batch
        self.computation = ForwardPass(network, options, device, talks=world.is_main)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        self.norms = [module for _, module in used_modules(network) if isinstance(module, _BatchNorm)]
        self.statistics = [buffer for module in self.norms for buffer in module.buffers()]
        self.module: nn.Module = _Loss(network, objective)
        if world.size > 1:
            self.module = _distributed(self.module, device)

    def compute(self, x: Tensor, y: Tensor, step_of: StepOf) -> Outcome:
        """Leave the gradients of the mean loss over the whole batch in the parameters, on every process.

        If memory runs out, the micro-batch is halved from here on, and the step is done again with the same noise.

        Args:
            x, y: images and labels of the whole batch, the same on every process.
            step_of: makes the `TrainingStep` for some rows of a batch, or for the whole of one (None, None).
        Raises: MemoryShortageError if memory runs out with one image at a time.
        """
        while True:
            before = [buffer.clone() for buffer in self.statistics]
            outcome = self._attempt(x, y, step_of)
            if outcome is not None:
                self._share_statistics()
                return outcome
            for buffer, value in zip(self.statistics, before, strict=True):
                buffer.copy_(value)
            self._shrink(len(y))

    def _attempt(self, x: Tensor, y: Tensor, step_of: StepOf) -> Outcome | None:
        """The outcome of a step, or None on every process if one of them runs out of memory."""
        *parts, last = cut(len(y), self.world, self.micro_batch)
        self.module.zero_grad(set_to_none=True)
        self.network.train()
        found: list[tuple[MicroBatch, StepLoss]] = []
        failed = False
        try:
            for part in parts:
                with self._alone():
                    found.append((part, self._forward(part, x, y, step_of)))
                    self._backward(*found[-1])
            found.append((last, self._forward(last, x, y, step_of)))
            if self.world.size == 1:
                self._backward(*found[-1])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if self.world.total([failed])[0]:
            return None
        if self.world.size > 1:
            self._exchange(*found[-1], images=len(y))
        return Outcome(
            loss=sum(losses.total.item() * part.share for part, losses in found),
            correct=sum(_correct(losses.logits, y[part.rows]) for part, losses in found if part.images),
            afters=tuple(losses.after for part, losses in found if losses.after and part.images),
        )

    def _forward(self, part: MicroBatch, x: Tensor, y: Tensor, step_of: StepOf) -> StepLoss:
        whole = part.share == 1
        step = step_of(None, None) if whole else step_of(part.rows, len(y))
        # Masks are selected again for every micro-batch: a backward pass frees the graph that leads to the scores.
        with shared_masks(self.network), self.computation.in_use():
            losses: StepLoss = self.module(x[part.rows], y[part.rows], step)
        return losses

    def _backward(self, part: MicroBatch, losses: StepLoss) -> None:
        weight = part.share * self.world.size  # DistributedDataParallel averages over the processes
        total = losses.total if weight == 1 else losses.total * weight
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def _exchange(self, part: MicroBatch, losses: StepLoss, *, images: int) -> None:
        """Backward pass of the last micro-batch, during which the processes sum their gradients."""
        try:
            self._backward(part, losses)
        except RuntimeError as error:
            if is_out_of_memory(error):
                less = halved(images, self.world, self.micro_batch)
                say(f"out of memory while gradients were exchanged; go on with --resume --micro-batch {less or 1}")
            raise

    def _alone(self) -> AbstractContextManager[None]:
        """Keep gradients on this process inside the block."""
        sharing = isinstance(self.module, DistributedDataParallel)
        return self.module.no_sync() if sharing else nullcontext()  # type: ignore[operator, no-any-return]

    def _shrink(self, whole: int) -> None:
        smaller = halved(whole, self.world, self.micro_batch)
        if smaller is None:
            raise MemoryShortageError(
                f"out of memory on {self.device} with one image at a time; choose a device with more memory, "
                "a smaller network, or --precision bfloat16"
            )
        self.micro_batch = smaller
        self.module.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.world.is_main:
            say(f"out of memory: going on with micro-batches of {smaller} images; batches stay as large as they are")

    @torch.no_grad()
    def take_population_statistics(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Replace the running statistics of batch norm by the plain average of those of batches, clean images.

        Source: the reference code of CTBench (arXiv:2406.04848), which does so after every epoch.
        """
        momenta = [norm.momentum for norm in self.norms]
        self.network.eval()
        for norm in self.norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # an average in which all batches count the same
        with shared_masks(self.network):
            for x, y in batches:
                for part in cut(len(y), self.world, self.micro_batch):
                    if part.images:
                        self.network(x[part.rows])
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
        self._share_statistics()

    def _share_statistics(self) -> None:
        """Average the running statistics of batch norm over the processes."""
        floats = [buffer for buffer in self.statistics if buffer.is_floating_point()]
        if self.world.size == 1 or not floats:
            return
        flat = torch.cat([buffer.flatten() for buffer in floats])
        self.world.add_up(flat)
        flat /= self.world.size
        for buffer, value in zip(floats, torch.split(flat, [buffer.numel() for buffer in floats]), strict=True):
            buffer.copy_(value.view_as(buffer))


def _distributed(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module so that the processes sum its gradients.

    Broadcasting buffers would change masks in place, which the graph still needs. Newer versions of torch warn of
    this option's name, and have no other one yet for what it does.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


class _Loss(nn.Module):
    """The loss of a network as a module: DistributedDataParallel then sees all that it computes, bounds too."""

    def __init__(self, network: nn.Module, objective: ObjectiveSettings) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, x: Tensor, y: Tensor, step: TrainingStep) -> StepLoss:
        """Return the losses of images and labels."""
        return OBJECTIVES[self.objective.name].loss(self.network, x, y, self.objective, step)


def _correct(logits: Tensor, y: Tensor) -> int:
    return int((logits.argmax(1) == y).sum())
