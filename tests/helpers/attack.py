"""The smallest margins that an attacker finds in a ball, to hold bounds against."""

from __future__ import annotations

import itertools

import torch


def margins(network, x, y):
    logits = network(x)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def into_ball(points, x, epsilon, norm):
    steps = points - x
    if norm == "l2":
        length = steps.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)
        return (x + steps * (epsilon / length).clamp(max=1)).clamp(0, 1)
    return (x + steps.clamp(-epsilon, epsilon)).clamp(0, 1)


def attacked(network, x, y, epsilon, norm, generator):
    """The smallest margins that corners of the ball and two descents by signs, or by gradients, find."""
    best = margins(network, x, y)
    for _ in range(8):
        step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        corner = x + 1e3 * (step.sign() if norm == "linf" else step)
        best = best.minimum(margins(network, into_ball(corner, x, epsilon, norm), y))
    for start in (torch.zeros_like(x), torch.randn(x.shape, generator=generator, dtype=x.dtype)):
        point = into_ball(x + epsilon * start, x, epsilon, norm)
        for size in (2.0, 1.0, 0.5, 0.25, 0.1, 0.05):
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(margins(network, point, y).sum(), point)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)
            step = gradient.sign() if norm == "linf" else gradient / length
            point = into_ball(point.detach() - size * epsilon * step, x, epsilon, norm)
            best = best.minimum(margins(network, point, y))
    return best


def corners(network, x, y, epsilon):
    """The smallest margins over all corners of an L-infinity ball around images of a few pixels."""
    ends = [(x - epsilon).clamp(0, 1).flatten(1), (x + epsilon).clamp(0, 1).flatten(1)]
    signs = torch.tensor(list(itertools.product((False, True), repeat=ends[0].shape[1])))
    points = torch.where(signs.unsqueeze(1), ends[1], ends[0])
    found = margins(network, points.reshape(-1, *x.shape[1:]), y.repeat(len(signs)))
    return found.view(len(signs), -1).amin(0)


def grid_minimum(network, x, y, epsilon, norm, side=161):
    """The smallest margin on a grid of the ball around images of two pixels."""
    axis = torch.linspace(-epsilon, epsilon, side, dtype=x.dtype)
    steps = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    found = [
        margins(network, into_ball(image + steps, image, epsilon, norm), label.expand(len(steps))).min()
        for image, label in zip(x.split(1), y, strict=True)
    ]
    return torch.stack(found)


def descended(network, x, y, epsilon, norm, rng, restarts=10, steps=15):
    """The smallest margins that gradients lead to, from random points of the ball."""
    smallest = margins(network, x, y).detach()
    for _ in range(restarts):
        point = into_ball(x + epsilon * (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1), x, epsilon, norm)
        for _ in range(steps):
            point.requires_grad_()
            (slope,) = torch.autograd.grad(margins(network, point, y).sum(), point)
            ahead = (
                slope.sign()
                if norm == "linf"
                else slope / slope.flatten(1).norm(dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
            )
            point = into_ball(point.detach() - epsilon / 4 * ahead, x, epsilon, norm)
            smallest = smallest.minimum(margins(network, point, y).detach())
    return smallest
