"""The forward pass of a network in training: its precision, and whether it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hydrabench.runtime import TRAINING_PRECISIONS
from hydrabench.workflows.progress import say
from hydrabench.workflows.run_options import RunOptions

COMPILING = "--compile: compiling the network, at first for half a minute or more; then it goes on faster"


class ForwardPass:
    """Runs the calls of a network in reduced precision, compiled, or both.

    Only calls of the network are affected. Bounds read its layers instead and stay in float32, and so do losses,
    because logits are returned in float32.
    """

    def __init__(self, network: nn.Module, options: RunOptions, device: torch.device, *, talks: bool) -> None:
        """Prepare for `network`, which is on `device`; `talks`: whether this process prints to the user."""
        self.network = network
        self.device = device
        self.dtype = TRAINING_PRECISIONS[options.precision]
        self.talks = talks
        self.compiled: Callable[[Tensor], Tensor] | None = torch.compile(network.forward) if options.compile else None
        self.failures = _compile_errors() if options.compile else ()
        self.started = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits, (B, K), float32."""
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if reduced else None, enabled=reduced):
            return self._forward(x).float()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Compute every call of the network inside the block this way."""
        if self.dtype == torch.float32 and self.compiled is None:
            yield
            return
        # `Module.compile` of torch sets this attribute, too. torch.fx, with which the bounds read the network, does not
        # see it, as it would see a replaced `forward` or a hook.
        self.network._compiled_call_impl = self
        try:
            yield
        finally:
            self.network._compiled_call_impl = None

    def _forward(self, x: Tensor) -> Tensor:
        if self.compiled is not None:
            if self.talks and not self.started:
                say(COMPILING)
            self.started = True
            try:
                return self.compiled(x)
            except self.failures as error:
                if self.talks:
                    reason = " ".join(str(error).split())[:200]
                    say(f"--compile: going on without, because torch.compile failed: {type(error).__name__}: {reason}")
                self.compiled = None
        logits: Tensor = self.network.forward(x)
        return logits


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return the errors that torch.compile raises if it cannot compile, for example without a C++ compiler."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - takes as long to import as torch itself

    return TorchDynamoException, ImportError
