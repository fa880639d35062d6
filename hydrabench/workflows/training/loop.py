"""The training loop of all three phases: steps, validation, the choice of the best epoch, and a state to resume from.

Every random number comes from a stream keyed by (seed, phase, epoch, step), so the state after a
minibatch is the network, the optimizer and what was measured; a run continued from it ends with the same
bits on the CPU as one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.checkpoints import BestEpoch, state_of
from hydrabench.data import ImageSource, TrainingBatches
from hydrabench.errors import NonFiniteError
from hydrabench.masking import freeze_masks
from hydrabench.objectives import EPSILON_SCHEDULES, OBJECTIVES, ObjectiveSettings, TrainingStep
from hydrabench.recipes import PhaseRecipe
from hydrabench.runtime import World, exact_arithmetic, stream
from hydrabench.workflows.progress import Advance, tracking
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.training.gradients import Gradients
from hydrabench.workflows.training.keep_rates import BudgetPenalty
from hydrabench.workflows.training.micro_batches import Memory, minibatches
from hydrabench.workflows.training.optimizer import Average, build_optimizer, limit_gradients, set_learning_rate
from hydrabench.workflows.training.resume import Progressed, Sums, read_state, resuming, write_metrics, write_state
from hydrabench.workflows.training.tensorboard import Write, scalars
from hydrabench.workflows.training.validation import rehearse, validate


@dataclass(frozen=True)
class PhaseJob:
    """One phase of one recipe, ready to run: the network is on its device and in its phase."""

    title: str
    phase: str
    seed: int
    recipe: PhaseRecipe
    objective: ObjectiveSettings
    batches: TrainingBatches
    validation: ImageSource
    network: nn.Module
    device: torch.device
    options: RunOptions
    world: World

    @property
    def repeats(self) -> int:
        """Optimizer steps in a row on each minibatch."""
        return OBJECTIVES[self.objective.name].repeats(self.objective)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training images."""
        return self.batches.per_epoch * self.repeats

    @property
    def epsilon(self) -> float:
        """Final training radius, 0 for an objective without one."""
        return self.objective.full_radius


@dataclass(frozen=True)
class Trained:
    """The tensors of the best epoch (the latest of equals), how it was selected, and the micro-batch at the end."""

    tensors: dict[str, Tensor]
    selection: BestEpoch
    micro_batch: int | None


class DivergedError(NonFiniteError):
    """The loss or a weight is not finite. `trained` is the best epoch before that, None if there is none."""

    def __init__(self, message: str, trained: Trained | None) -> None:
        super().__init__(message)
        self.trained = trained


class Loop:
    """Trains a job from the state in its folder, or from the beginning if there is none."""

    def __init__(self, job: PhaseJob, folder: Path) -> None:
        """Raises: LedgerError if there is a state that cannot be used."""
        self.job, self.folder = job, folder
        self.metric = OBJECTIVES[job.objective.name].metric
        self.memory = Memory(job.world)
        self.done = Progressed()
        state = job.world.on_main(lambda: read_state(folder))
        if state is not None:
            self._restore_network(state)
        # First, because it copies the network of the main process to the others.
        self.gradients = Gradients(job.network, job.objective, options=job.options, device=job.device, world=job.world)
        self.penalty = BudgetPenalty(job.network, job.recipe)
        self.optimizer = build_optimizer(job.network, job.recipe)
        self.average = Average(job.network, job.recipe.ema_decay) if job.recipe.ema_decay else None
        if state is not None:
            self._restore(state)
        self.saved = time.monotonic()

    def run(self) -> Trained:
        """Train to the last epoch.

        Raises: DivergedError naming the step if the loss is not finite, or a tensor that is not after an epoch; the
            last state stays in the folder.
        """
        job = self.job
        start = self.done.epochs * job.steps_per_epoch + self.done.sums.minibatches * job.repeats
        total = job.recipe.epochs * job.steps_per_epoch
        main = job.world.is_main
        with (
            tracking(job.title, total=total, done=start, visible=main) as advance,
            scalars(self.folder, first_step=start, wanted=main and job.options.tensorboard) as write,
        ):
            if start == 0:
                rehearse(job.network, job.validation, job.objective, job.device)
            while self.done.epochs < job.recipe.epochs:
                self._epoch(advance, write)
        return self._trained()

    def _epoch(self, advance: Advance, write: Write) -> None:
        """Train and validate one epoch, and save the state after it."""
        epoch, job = self.done.epochs, self.job
        self._train_epoch(epoch, advance, write)
        started = time.monotonic()
        with self.average.applied() if self.average else nullcontext():
            if job.recipe.population_statistics:
                self.gradients.take_population_statistics(minibatches(job.batches, job.world, epoch=epoch, first=0))
            accuracies = validate(
                job.network,
                job.validation,
                job.objective,
                seed=job.seed,
                device=job.device,
                world=job.world,
                tell=lambda seen: advance(0, f"epoch {epoch + 1}: validation, {seen}"),
            )
            tensors = state_of(job.network)
            if unfit := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
                raise self._diverged(f"{unfit[0]} holds values that are not finite")
            if accuracies[self.metric] >= self.done.best_value:
                self.done.best = {key: tensor.clone() for key, tensor in tensors.items()}
                self.done.best_value, self.done.best_epoch = accuracies[self.metric], epoch + 1
        row = self._row(epoch, accuracies, validation_seconds=time.monotonic() - started)
        self.done.rows.append(row)
        self.done.epochs, self.done.sums = epoch + 1, Sums()
        self._save()
        write(self.done.epochs * job.steps_per_epoch, {f"epoch/{name}": value for name, value in row.items()})
        advance(0, f"epoch {epoch + 1}: loss {row['loss']:.3f}, validation {self.metric} {accuracies[self.metric]:.3f}")

    def _row(self, epoch: int, accuracies: Mapping[str, float], *, validation_seconds: float) -> dict[str, float]:
        sums = self.done.sums
        return {
            "epoch": epoch + 1,
            "lr": sums.lr,
            "epsilon": sums.epsilon,
            "loss": sums.loss / sums.images,
            "train_accuracy": sums.correct / sums.images,
            **{f"validation_{name}": value for name, value in accuracies.items()},
            **self.penalty.row(),
            "seconds": round(sums.seconds + validation_seconds, 3),
        }

    def _train_epoch(self, epoch: int, advance: Advance, write: Write) -> None:
        """Continue one pass over the training images."""
        job, sums = self.job, self.done.sums
        exact = OBJECTIVES[job.objective.name].uses_bounds
        before, started, images = sums.seconds, time.monotonic(), 0
        with exact_arithmetic() if exact else nullcontext():
            for x, y in minibatches(job.batches, job.world, epoch=epoch, first=sums.minibatches):
                due = False
                for repeat in range(job.repeats):
                    step = (epoch * job.batches.per_epoch + sums.minibatches) * job.repeats + repeat
                    loss, due = self._step(step, x, y)
                    images += len(y)
                    speed = images / max(time.monotonic() - started, 1e-9)
                    advance(1, f"epoch {epoch + 1}: loss {loss:.3f}, {speed:.0f} images/s")
                    write(step, {"step/loss": loss, "step/lr": sums.lr, "step/epsilon": sums.epsilon})
                sums.minibatches += 1
                sums.seconds = before + time.monotonic() - started
                if due and sums.minibatches < job.batches.per_epoch:
                    self._save()

    def _step(self, number: int, x: Tensor, y: Tensor) -> tuple[float, bool]:
        """Take one optimizer step; return its loss and whether to save now, the same on every process."""
        job, sums = self.job, self.done.sums
        sums.lr = set_learning_rate(self.optimizer, job.recipe, number, steps_per_epoch=job.steps_per_epoch)
        sums.epsilon = self._epsilon(number)
        if job.options.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        memory = self.memory.deal(len(y))
        outcome = self.gradients.compute(
            x, y, lambda rows, whole: self._step_of(number, sums.epsilon, memory, rows, whole)
        )
        due = time.monotonic() - self.saved >= 60 * job.options.save_minutes
        loss, correct, due_on_main = job.world.total([outcome.loss, outcome.correct, float(due and job.world.is_main)])
        if not isfinite(loss):
            raise self._diverged(f"the loss is {loss} at step {number}")
        if self._optimize():
            for after in outcome.afters:
                after()
        sums.loss += loss * len(y)
        sums.correct += int(correct)
        sums.images += len(y)
        return loss, bool(due_on_main)

    def _optimize(self) -> bool:
        """Move the weights; False if float16 gradients overflowed, and the step is skipped as GradScaler does."""
        scaler = self.gradients.scaler
        scale = scaler.get_scale()
        self.penalty.add_gradients(self.done.rows, scale)
        if self.job.recipe.gradient_norm:
            scaler.unscale_(self.optimizer)
            limit_gradients(self.job.network, self.job.recipe.gradient_norm)
        scaler.step(self.optimizer)
        scaler.update()
        moved = scaler.get_scale() >= scale
        if moved and self.average:
            self.average.update()
        return moved

    def _epsilon(self, step: int) -> float:
        job, ramp = self.job, self.job.recipe.epsilon_ramp_epochs
        grown = EPSILON_SCHEDULES[job.recipe.epsilon_schedule]
        return grown(step, steps_per_epoch=job.steps_per_epoch, ramp_epochs=ramp, epsilon=job.epsilon)

    def _step_of(
        self, number: int, epsilon: float, memory: dict[str, Tensor], rows: slice | None, whole: int | None
    ) -> TrainingStep:
        """Return the step as the objective sees it, with the same random numbers in all processes and micro-batches."""
        job = self.job
        return TrainingStep(
            epsilon=epsilon,
            ramp=epsilon / job.epsilon if job.epsilon else 1.0,
            generator=stream(job.seed, job.phase, "step", number),
            rows=rows,
            whole=whole,
            memory=memory,
            epoch=number // job.steps_per_epoch,
            ramp_epochs=job.recipe.epsilon_ramp_epochs,
        )

    def _diverged(self, what: str) -> DivergedError:
        job, done = self.job, self.done
        kept = (
            f"the best of the {done.epochs} epochs before it, epoch {done.best_epoch}, is kept as the checkpoint"
            if done.best
            else "there is none before it"
        )
        return DivergedError(
            f"{job.title}: {what} (epoch {done.epochs + 1}; {kept}); "
            "lower lr or lengthen epsilon_ramp_epochs, and start a new run",
            self._trained() if done.best else None,
        )

    def _trained(self) -> Trained:
        done = self.done
        selection = BestEpoch(
            split=self.job.validation.split,
            images=len(self.job.validation),
            metric=self.metric,
            value=done.best_value,
            epoch=done.best_epoch,
        )
        return Trained(done.best, selection, self.gradients.micro_batch)

    def _save(self) -> None:
        """Write the state on the main process; it is the same on all."""
        self.memory.gather()
        self.saved = time.monotonic()
        if not self.job.world.is_main:
            return
        state: dict[str, Any] = {
            "network": self.job.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.gradients.scaler.state_dict(),
            "average": self.average.state() if self.average else None,
            "memory": self.memory.tensors,
            "micro_batch": self.gradients.micro_batch,
        }
        write_state(self.folder, state, self.done)

    def _restore_network(self, state: dict[str, Any]) -> None:
        with resuming(self.folder):
            self.job.network.load_state_dict(state["network"])
            if self.job.phase != "prune":
                freeze_masks(self.job.network)  # of the saved scores, not of those drawn at the start of this process

    def _restore(self, state: dict[str, Any]) -> None:
        """Restore everything but the network from the state of an interrupted run."""
        with resuming(self.folder):
            self.optimizer.load_state_dict(state["optimizer"])
            self.gradients.scaler.load_state_dict(state["scaler"])
            if self.average:
                self.average.restore(state["average"])
            self.memory.tensors |= {key: tensor.to(self.job.device) for key, tensor in state["memory"].items()}
            if self.gradients.micro_batch is None:
                self.gradients.micro_batch = state["micro_batch"]
            self.done = Progressed.of(state["done"])
        if self.job.world.is_main:
            write_metrics(self.folder, self.done)
