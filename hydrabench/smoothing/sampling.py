"""Votes of a network on noisy copies of images, the same on every device and in every process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hydrabench.errors import NonFiniteError
from hydrabench.smoothing.noise import NoiseSource, NoiseStream, noisy

Result = TypeVar("Result")
# Numbers in one batch of noisy images, if nobody says how many images: more only leave the caches.
BATCH_NUMBERS = {"cpu": 400_000, "cuda": 12_000_000}
SMALLEST_BATCH, LARGEST_BATCH = 32, {"cpu": 400, "cuda": 10_000}


class Draws(NamedTuple):
    """A request of a routine: the class counts of the first `total` draws of the stream `key`.

    The last entry of the key is the index of the image. Within one stream, totals rise.
    """

    key: tuple[object, ...]
    total: int


# Decides about one image: asks for draws, is sent their class counts (K,), and returns its result in the end.
Routine = Generator[Draws, list[int], Result]


@dataclass(frozen=True)
class Sampling:
    """The options of drawing. batch: noisy images in one forward pass, None: by their size; it changes no count."""

    source: NoiseSource = field(default_factory=NoiseSource)
    batch: int | None = None

    def batch_for(self, image: Tensor) -> int:
        """Noisy copies of an image, (C, H, W), that go through the network at once."""
        if self.batch is not None:
            return self.batch
        place = "cpu" if image.device.type == "cpu" else "cuda"
        return min(max(BATCH_NUMBERS[place] // image.numel(), SMALLEST_BATCH), LARGEST_BATCH[place])


class _Job(Generic[Result]):
    """One image: what it waits for, and how far its stream has been read."""

    def __init__(self, row: int, routine: Routine[Result]) -> None:
        self.row, self.routine = row, routine
        self.asked = next(routine)
        self.stream: NoiseStream | None = None
        self.drawn, self.spent = 0, 0  # rows of the present stream; of all
        self.result: Result | None = None

    @property
    def missing(self) -> int:
        return self.asked.total - self.drawn


class _Pool(Generic[Result]):
    """Unfinished images, whose draws share forward passes."""

    def __init__(
        self, network: nn.Module, images: Tensor, routines: Sequence[Routine[Result]], sigma: float, sampling: Sampling
    ) -> None:
        self.network, self.images, self.sigma, self.source = network, images, sigma, sampling.source
        self.jobs = [_Job(row, routine) for row, routine in enumerate(routines)]
        on_device = sampling.source.generator == "device"
        self.noise = torch.empty(
            sampling.batch_for(images[0]), *images.shape[1:], device=images.device if on_device else "cpu"
        )
        self.counts: Tensor | None = None  # (B, K + 1); the last column counts logits that are not finite

    def run(self) -> None:
        """Fill batches until every routine has returned.

        What a batch completed is judged while the next one is computed, so that looks do not hold the device up.
        """
        waiting = list(self.jobs)
        judged: _Judged[Result] = _Judged([], torch.empty(0))
        while waiting or judged.jobs:
            filled, completed = self._fill(waiting)
            if filled:
                self._vote(filled)
            waiting = [job for job in waiting if job.missing]
            waiting += [job for job in judged.jobs if self._judge(job, judged.of(job))]
            judged = _Judged(completed, self._fetch() if completed else torch.empty(0))

    def _fill(self, waiting: Sequence[_Job[Result]]) -> tuple[list[tuple[int, int]], list[_Job[Result]]]:
        """Read noise for as many draws as fit. Returns: (row, draws) of the slices; the jobs that now have all."""
        filled, completed, used = [], [], 0
        for job in waiting:
            take = min(job.missing, len(self.noise) - used)
            if take:
                if job.stream is None:
                    shape, device = self.images.shape[1:], self.images.device
                    job.stream = NoiseStream(self.source, shape, device, sigma=self.sigma, key=job.asked.key)
                job.stream.read(self.noise[used : used + take])
                job.drawn, job.spent, used = job.drawn + take, job.spent + take, used + take
                filled.append((job.row, take))
            if not job.missing:
                completed.append(job)
        return filled, completed

    def _vote(self, filled: Sequence[tuple[int, int]]) -> None:
        """Classify the noisy copies in the buffer and add their votes to the counts."""
        device = self.images.device
        noise = self.noise[: sum(draws for _, draws in filled)].to(device)
        if len(filled) == 1:  # one image fills the batch: nothing to gather
            owner: Tensor | int = filled[0][0]
            images = self.images[owner].expand_as(noise)
        else:
            rows, draws = (torch.tensor(numbers) for numbers in zip(*filled, strict=True))
            owner = torch.repeat_interleave(rows, draws).to(device)
            images = self.images[owner]
        logits = self.network(noisy(noise, images, self.source))
        classes = logits.shape[1]
        if self.counts is None:
            self.counts = torch.zeros(len(self.images), classes + 1, dtype=torch.int64, device=device)
        # A sum is not finite if a term is not; one that overflows is refused as well.
        votes = logits.argmax(1).masked_fill_(~torch.isfinite(logits.sum(1)), classes)
        found = torch.bincount(owner * (classes + 1) + votes, minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def _fetch(self) -> Tensor:
        """A copy of the counts on its way to the CPU."""
        assert self.counts is not None
        if self.counts.device.type != "cuda":
            return self.counts.cpu().clone()
        return torch.empty_like(self.counts, device="cpu", pin_memory=True).copy_(self.counts, non_blocking=True)

    def _judge(self, job: _Job[Result], counts: list[int]) -> bool:
        """Send a job its counts; say whether it asks for more."""
        *votes, broken = counts
        if broken:
            kind = "Gaussian" if self.source.rigor == "standard" else "integer"
            raise NonFiniteError(
                f"image {job.asked.key[-1]}: the network gives a NaN or infinite logit under {kind} noise of sigma "
                f"{self.sigma}; check the checkpoint, or evaluate with --precision float64"
            )
        key = job.asked.key
        try:
            job.asked = job.routine.send(votes)
        except StopIteration as stopped:
            job.result = stopped.value
            return False
        if job.asked.key != key:
            assert self.counts is not None
            job.stream, job.drawn = None, 0
            self.counts[job.row] = 0
        return True


class _Judged(Generic[Result]):
    """Jobs that have their draws, and the copy of the counts that will say what came of them."""

    def __init__(self, jobs: Sequence[_Job[Result]], counts: Tensor) -> None:
        self.jobs, self.counts = jobs, counts
        self.copied = torch.cuda.Event() if counts.is_pinned() else None  # type: ignore[no-untyped-call]
        if self.copied is not None:
            self.copied.record()

    def of(self, job: _Job[Result]) -> list[int]:
        """The counts of one job, once they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        return [int(count) for count in self.counts[job.row]]


@torch.no_grad()
def collect(
    network: nn.Module, images: Tensor, routines: Sequence[Routine[Result]], *, sigma: float, sampling: Sampling
) -> list[tuple[Result, int]]:
    """Run one routine for each image, with the draws of all packed into shared forward passes.

    What a routine is sent depends on its image and on what it asks for alone: not on the other images,
    the size of the batches, or how they are packed.

    Args:
        network: classifier in eval mode, on the device and in the precision of `images`.
        images: (B, C, H, W), in [0, 1]; 8-bit images for integer noise. routines: B of them.
        sigma: noise standard deviation in pixel units, > 0.
    Returns: what each routine returned, and how many draws it took.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    """
    if not sigma > 0:
        raise ValueError(f"out of range: {sigma=}")
    if not routines:
        return []
    pool = _Pool(network, images, routines, sigma, sampling)
    pool.run()
    return [(job.result, job.spent) for job in pool.jobs]  # type: ignore[misc]  # every job has finished


def class_counts(
    network: nn.Module,
    image: Tensor,
    *,
    sigma: float,
    draws: int,
    key: tuple[object, ...],
    sampling: Sampling | None = None,
) -> Tensor:
    """Count how often each class is predicted on noisy copies of `image`.

    Draw number i is row i of `NoiseStream(..., key=key)`. With the default source the noise is drawn on the
    CPU in float32 and moved, so the counts depend on (key, draws) alone: devices and precisions differ
    only where rounding decides the prediction. The noisy images are not clamped to [0, 1].

    Args:
        network: classifier in eval mode, on the device and in the precision of `image`.
        image: one image, (C, H, W), in [0, 1].
        sigma: noise standard deviation in pixel units, > 0.
        draws: number of noisy copies, >= 1.
        key: names the random stream; its last entry is the index of the image in its data set.
    Returns: (K,) int64 on the CPU, adding up to `draws`.
    Raises: NonFiniteError naming the image if a logit is NaN or infinite.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, SAMPLEUNDERNOISE.
    """
    if not (draws >= 1 and sigma > 0):
        raise ValueError(f"out of range: {draws=}, {sigma=}")
    routine = _once(Draws(key, draws))
    ((counts, _),) = collect(network, image[None], [routine], sigma=sigma, sampling=sampling or Sampling())
    return torch.tensor(counts)


def _once(asked: Draws) -> Routine[list[int]]:
    return (yield asked)
