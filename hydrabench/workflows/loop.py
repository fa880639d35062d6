"""The training loop that all three phases share: steps, validation, the best epoch, and a state to resume from.

Every random number comes from a stream keyed by (seed, phase, epoch, step), so the state after an
epoch is the network, the optimizer and what was measured; a run continued from it ends with the same
bits on the CPU as one that was never interrupted.
"""

from __future__ import annotations

import csv
import io
import pickle
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydrabench.checkpoints import Selection, state_of
from hydrabench.config import Objective, PhaseRecipe
from hydrabench.data import ImageSource, TrainingBatches, batches, pixels
from hydrabench.errors import LedgerError, NonFiniteError
from hydrabench.files import replacing, write_text
from hydrabench.masking import freeze_masks, shared_masks
from hydrabench.objectives import OBJECTIVES, SCHEDULES, Step, linear_epsilon
from hydrabench.runtime import stream
from hydrabench.workflows.progress import tracking

STATE_FILE, METRICS_FILE = "resume.pt", "metrics.csv"
VALIDATION_BATCH = 500


@dataclass(frozen=True)
class Job:
    """One phase of one recipe, ready to run: the network is on its device and in its phase."""

    title: str
    phase: str
    seed: int
    recipe: PhaseRecipe
    objective: Objective
    batches: TrainingBatches
    validation: ImageSource
    network: nn.Module
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last batch may be smaller."""
        return self.batches.per_epoch

    @property
    def epsilon(self) -> float:
        """Final training radius, 0 for an objective without one."""
        return float(getattr(self.objective, "epsilon", 0))


@dataclass
class Progressed:
    """What the loop has done so far: finished epochs, their metrics, and the best of them."""

    epochs: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_value: float = -1.0
    best_epoch: int = 0


def run_epochs(job: Job, folder: Path) -> tuple[dict[str, Tensor], Selection]:
    """Train to the last epoch, from the state in `folder` if there is one.

    Returns: the tensors of the best epoch (the latest of equals) and how it was selected.
    Raises: NonFiniteError naming the step if the loss is not finite; the last state stays in `folder`.
    """
    optimizer = _optimizer(job)
    done = _restore(job, optimizer, folder)
    metric = OBJECTIVES[job.objective.name].metric
    total = job.recipe.epochs * job.steps_per_epoch
    with tracking(job.title, total=total, done=done.epochs * job.steps_per_epoch) as advance:
        for epoch in range(done.epochs, job.recipe.epochs):
            started = time.monotonic()
            row = _train_epoch(job, optimizer, epoch, advance)
            accuracies = _validate(job)
            row |= {f"validation_{name}": value for name, value in accuracies.items()}
            row["seconds"] = round(time.monotonic() - started, 3)
            done.rows.append(row)
            done.epochs = epoch + 1
            if accuracies[metric] >= done.best_value:
                done.best = {key: tensor.clone() for key, tensor in state_of(job.network).items()}
                done.best_value, done.best_epoch = accuracies[metric], epoch + 1
            _save(job, optimizer, done, folder)
            advance(0, f"epoch {epoch + 1}: loss {row['loss']:.3f}, validation {metric} {accuracies[metric]:.3f}")
    selection = Selection(
        split=job.validation.split,
        images=len(job.validation),
        metric=metric,
        value=done.best_value,
        epoch=done.best_epoch,
    )
    return done.best, selection


def _optimizer(job: Job) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in job.network.parameters() if parameter.requires_grad]
    lr, weight_decay = job.recipe.lr, job.recipe.weight_decay
    if job.recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=job.recipe.momentum, weight_decay=weight_decay)


def _train_epoch(job: Job, optimizer: torch.optim.Optimizer, epoch: int, advance: Any) -> dict[str, float]:
    """One pass over the training images; returns the metrics of the epoch so far."""
    loss_sum, correct, count, lr, epsilon = 0.0, 0, 0, 0.0, 0.0
    job.network.train()
    for number, (x, y) in enumerate(job.batches.epoch(epoch)):
        step = epoch * job.steps_per_epoch + number
        lr = job.recipe.lr * SCHEDULES[job.recipe.schedule](step, total=job.recipe.epochs * job.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        settings = _step(job, step)
        epsilon = settings.epsilon
        with shared_masks(job.network):
            losses = OBJECTIVES[job.objective.name].loss(job.network, x, y, job.objective, settings)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
        value = losses.total.item()
        if value - value != 0:
            raise NonFiniteError(
                f"{job.title}: the loss is {value} at step {step} (epoch {epoch + 1}; the {epoch} epochs before it are "
                f"kept in {STATE_FILE}); lower lr or lengthen epsilon_ramp_epochs, and start a new run"
            )
        optimizer.step()
        count += len(y)
        loss_sum += value * len(y)
        correct += int((losses.logits.argmax(1) == y).sum())
        advance(1, f"epoch {epoch + 1}: loss {value:.3f}")
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "epsilon": epsilon,
        "loss": loss_sum / count,
        "train_accuracy": correct / count,
    }


def _step(job: Job, step: int) -> Step:
    epsilon = linear_epsilon(
        step, steps_per_epoch=job.steps_per_epoch, ramp_epochs=job.recipe.epsilon_ramp_epochs, epsilon=job.epsilon
    )
    ramp = epsilon / job.epsilon if job.epsilon else 1.0
    return Step(epsilon, ramp, stream(job.seed, job.phase, "step", step))


def _validate(job: Job) -> dict[str, float]:
    """Clean accuracy and the objective's own verdict at the final radius, on the held-out images."""
    objective = OBJECTIVES[job.objective.name]
    counts = {"clean_accuracy": 0, objective.metric: 0}
    job.network.eval()
    with shared_masks(job.network):
        for number, indices in enumerate(batches(len(job.validation), VALIDATION_BATCH)):
            chosen = indices.to(job.device)
            x, y = pixels(job.validation.take(chosen)), job.validation.labels[chosen]
            step = Step(job.epsilon, 1.0, stream(job.seed, "validation", number))
            with torch.no_grad():
                counts["clean_accuracy"] += int((job.network(x).argmax(1) == y).sum())
                if objective.metric != "clean_accuracy":
                    verdicts = objective.verdicts(job.network, x, y, job.objective, step)
                    counts[objective.metric] += int(verdicts.sum())
    return {name: count / len(job.validation) for name, count in counts.items()}


def _save(job: Job, optimizer: torch.optim.Optimizer, done: Progressed, folder: Path) -> None:
    """Write the state first and the table after it: the table can be made again from the state."""
    state = {"network": job.network.state_dict(), "optimizer": optimizer.state_dict(), "done": asdict(done)}
    with replacing(folder / STATE_FILE) as scratch:
        torch.save(state, scratch)
    _write_metrics(folder, done)


def _restore(job: Job, optimizer: torch.optim.Optimizer, folder: Path) -> Progressed:
    path = folder / STATE_FILE
    if not path.exists():
        return Progressed()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        job.network.load_state_dict(state["network"])
        if job.phase != "prune":
            freeze_masks(job.network)  # those of the scores that were saved, whatever was drawn today
        optimizer.load_state_dict(state["optimizer"])
        done = Progressed(**state["done"])
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise LedgerError(f"{path} cannot be resumed from ({error}); delete the folder and start again") from error
    _write_metrics(folder, done)
    return done


def _write_metrics(folder: Path, done: Progressed) -> None:
    """Write metrics.csv, one row per finished epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(done.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(done.rows)
    write_text(folder / METRICS_FILE, text.getvalue())
