"""Ctrl-C in the middle of a training run."""

from __future__ import annotations

from dataclasses import replace

from hydrabench.objectives import OBJECTIVES


def interrupt_loss(monkeypatch, call, name="trades"):
    """Press Ctrl-C in the `call`-th training step from now; returns the calls."""
    original, calls = OBJECTIVES[name], []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original.loss(*arguments)

    monkeypatch.setitem(OBJECTIVES, name, replace(original, loss=loss))
    return calls
