"""The operations that a network applies, and the values that each takes, read off its code.

A network of plain `nn.Sequential` containers is read by walking it; any other is traced with torch.fx.
What cannot be read without doubt is refused: an unknown layer, a hook, a value that nobody reads, one that
is read after an operation in place has changed it, and a network that changes its images or itself.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor, fx, jit, nn
from torch.nn.modules import module as torch_module

from hydrabench.bounds.program.arguments import Arguments, Call, NoRule, Reader
from hydrabench.bounds.program.calls import FUNCTIONS, TENSOR_METHODS, refusal
from hydrabench.bounds.program.convert import LAYERS, may_alias, reader
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.sizes import is_size
from hydrabench.bounds.program.structure import Identity
from hydrabench.errors import UnsupportedLayerError


@dataclass(frozen=True)
class Step:
    """One operation of a program, its parameters not yet read.

    path: where it stands in the network. inputs: numbers of the values it takes; value 0 is the
    network's input and value i + 1 the result of step i. source: the layer, or the operation itself.
    """

    path: str
    inputs: tuple[int, ...]
    source: nn.Module | Operation


def steps_of(network: nn.Module) -> tuple[Step, ...]:
    """The steps of a network in the order in which they run; the last one gives its output.

    Raises: UnsupportedLayerError naming the first layer or function that the bounds do not know.
    """
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    for path, module in network.named_modules():
        if isinstance(module, jit.ScriptModule):
            raise UnsupportedLayerError(
                "TorchScript has no layers that bounds could read; export the network with torch.export (.pt2), give "
                "its code, or certify it with smoothing"
            )
        if everywhere or module._forward_hooks or module._forward_pre_hooks:
            raise refusal(path, type(module).__name__, "carries forward hooks, which may change what it computes")
    layers = _chain(network, "")
    if layers is None:
        return _traced(network)
    return tuple(Step(path, (number,), layer) for number, (path, layer) in enumerate(layers))


def _chain(module: nn.Module, path: str) -> list[tuple[str, nn.Module]] | None:
    """The layers of nested plain `nn.Sequential`s, with their paths; None if another container is among them."""
    called = getattr(module.forward, "__func__", None), type(module).__call__
    if called == (nn.Sequential.forward, nn.Module.__call__):
        found: list[tuple[str, nn.Module]] = []
        for name, child in module._modules.items():
            layers = _chain(child, f"{path}.{name}" if path else name) if child is not None else None
            if layers is None:
                return None
            found += layers
        return found
    if not _is_leaf(module):
        return None
    _check(path, module)
    return [(path, module)]


def _is_leaf(module: nn.Module) -> bool:
    known = isinstance(module, tuple(LAYERS))
    return known or (type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential))


def _check(path: str, module: nn.Module) -> None:
    try:
        reader(module)
    except NoRule as reason:
        raise refusal(path, type(module).__name__, str(reason)) from None


IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")


class _Proxy(fx.Proxy):
    """A value for which `a += b` is recorded as what it is; torch.fx would write down a + b, which leaves a as it was.

    A network that asks whether it is a tensor would be told that it is not.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]  # isinstance reads it
        asking = sys._getframe(1)
        own = not str(asking.f_globals.get("__name__")).startswith("torch.")
        if own and "isinstance" in asking.f_code.co_names:
            raise fx.proxy.TraceError("it asks isinstance for the type of a value")
        return type(self)


def _recorded(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _recorded(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, _qualified_name: str) -> bool:
        return _is_leaf(m)


def _traced(network: nn.Module) -> tuple[Step, ...]:
    """Trace `network` inside a container, so that its own optional arguments keep their defaults."""
    tracer, root = _Tracer(), nn.Sequential(network)
    before, chance = _state(network), torch.get_rng_state()
    try:
        graph = tracer.trace(root)
    except (fx.proxy.TraceError, AttributeError, IndexError, NameError, RuntimeError, TypeError, ValueError) as error:
        reason = f"does something that depends on the values of its input ({error})"
        raise refusal("", type(network).__name__, reason) from error
    if _state(network) != before:
        raise refusal("", type(network).__name__, "changes its parameters or buffers when it is called")
    image, *calls, output = graph.nodes
    record = _Record(root, {image: 0})
    try:
        for node in calls:
            if not is_size(node):
                record.add(node)
        record.finish(output)
    except NoRule as reason:
        raise refusal("", type(network).__name__, str(reason)) from None
    if not chance.equal(torch.get_rng_state()):
        raise refusal("", type(network).__name__, "draws random numbers")
    return tuple(record.steps)


def _state(network: nn.Module) -> list[tuple[int, int]]:
    """Return which tensors a network holds, and how often each was written to."""
    held: list[Tensor] = [*network.parameters(), *network.buffers()]
    return [(id(tensor), tensor._version) for tensor in held]


@dataclass
class _Record:
    """The steps so far, and what guards them against a change in place.

    numbers: of the values that calls returned. constants: what depends on no image, such as buffers. pieces: calls that
    return several values. storage: for every value, the first of those that may share its memory. fresh: for such a
    first value, the number of the last change in place; what is older holds the changed content in torch, and its own
    in the program.
    """

    root: nn.Module
    numbers: dict[fx.Node, int]
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    pieces: dict[fx.Node, Call] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    storage: list[int] = field(default_factory=lambda: [0])
    fresh: dict[int, int] = field(default_factory=dict)
    unread: set[int] = field(default_factory=lambda: {0})

    def add(self, node: fx.Node) -> None:
        """Append the steps of one call."""
        if self._is_constant(node):
            return
        sources, inputs, in_place = self._sources(node)
        if not sources:
            return
        taken = tuple(self._read(value, _path(node)) for value in inputs)
        for source in sources:
            self._append(Step(_path(node), taken, source), in_place=in_place)
            taken = (len(self.steps),)
            self.unread.discard(taken[0])
        self.unread.add(taken[0])
        self.numbers[node] = taken[0]

    def _is_constant(self, node: fx.Node) -> bool:
        """Return whether a call depends on no image; its result is kept."""
        if node.op == "get_attr":
            self.constants[node] = attrgetter(str(node.target))(self.root)
            return True
        values = node.all_input_nodes
        if node.op not in ("call_function", "call_method") or not values or not self.constants.keys() >= {*values}:
            return False
        name = getattr(node.target, "__name__", str(node.target))
        if name.endswith("_") or name in (*IN_PLACE, "setitem") or node.kwargs.get("inplace"):
            raise NoRule(f"changes a constant of its own in {_path(node)}")
        args, kwargs = self._known(node)
        function = node.target if callable(node.target) else methodcaller(str(node.target), *args[1:], **kwargs)
        self.constants[node] = function(*args, **kwargs) if callable(node.target) else function(args[0])
        return True

    def _known(self, node: fx.Node) -> Arguments:
        """The arguments of a call, with constants in place of the nodes that stand for them."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: self.constants.get(value, value))
        return Arguments(args, kwargs)

    def _sources(self, node: fx.Node) -> tuple[Sequence[nn.Module | Operation], Sequence[Any], bool]:
        """Return the operations of a call in order, the values that the first takes, and whether it is in place."""
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            _check(_path(node), layer)
            if node.kwargs or len(node.args) != 1:
                raise NoRule(f"calls {_path(node)} with other arguments than one value")
            return (layer,), node.args, bool(getattr(layer, "inplace", False))
        if node.target is operator.getitem and node.args[0] in self.pieces:
            call = self.pieces[node.args[0]]  # type: ignore[index]
            assert call.pieces is not None, "that is why it is there"
            if not isinstance(node.args[1], int):
                raise NoRule(f"takes the part {node.args[1]} of {_path(node.args[0])}, only numbers have a rule")  # type: ignore[arg-type]
            return (call.pieces(node.args[1]),), call.inputs, False
        call = _call(node, self._known(node))
        if call.pieces:
            self.pieces[node] = call
        return call.operations, call.inputs, call.in_place

    def _append(self, step: Step, *, in_place: bool) -> None:
        self.steps.append(step)
        number, shared = len(self.steps), self.storage[step.inputs[0]]
        aliases = step.source.aliases if isinstance(step.source, Operation) else may_alias(step.source)
        if in_place and shared == 0 and not _keeps_pixels(step.source):
            raise NoRule(f"writes over its own images in {step.path}")
        self.storage.append(shared if in_place or aliases else number)
        if in_place and not isinstance(step.source, Identity | nn.Dropout):
            self.fresh[shared] = number

    def _read(self, value: Any, reader_name: str) -> int:
        if not isinstance(value, fx.Node) or value not in self.numbers:
            raise NoRule(f"gives {reader_name} something that is not a value of the network")
        number = self.numbers[value]
        if number < self.fresh.get(self.storage[number], 0):
            raise NoRule(f"reads {_path(value)} in {reader_name} after an operation in place may have changed it")
        self.unread.discard(number)
        return number

    def finish(self, output: fx.Node) -> None:
        """Check that the network returns one value, and that it reads every other."""
        self._read(output.args[0], "its output")
        if self.unread:
            name = next(_path(node) for node, number in self.numbers.items() if number in self.unread)
            raise NoRule(f"leaves a value unused: nothing reads the result of {name}")


def _keeps_pixels(source: nn.Module | Operation) -> bool:
    """Return whether numbers in [0, 1] stay as they are: what is written over images is what they were."""
    return isinstance(source, Relu | nn.ReLU | Identity | nn.Dropout)


def _call(node: fx.Node, given: Arguments) -> Call:
    calls: Mapping[str, Mapping[Any, Reader]] = {"call_function": FUNCTIONS, "call_method": TENSOR_METHODS}
    kind = f"{node.op.removeprefix('call_')} {getattr(node.target, '__name__', node.target)}"
    try:
        known = calls.get(node.op, {})
        found = known.get(node.target) or known.get(_full_name(node.target))
        if found is None:
            raise NoRule("has no sound rule")
        return found(given)
    except NoRule as reason:
        raise refusal(_path(node), kind, str(reason)) from None


def _full_name(function: Any) -> str:
    """Return what a function of another package, which is not imported for it, is called in the table."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _path(node: fx.Node) -> str:
    """Path of a layer, or name of a call, without the container that `_traced` adds."""
    return str(node.target).removeprefix("0").removeprefix(".") if node.op == "call_module" else node.name
