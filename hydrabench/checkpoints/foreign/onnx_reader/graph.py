"""From the graph of a file to that of torch.fx: node by node, constants computed, shapes followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from hydrabench.checkpoints.foreign.onnx_reader.builder import BATCH, Array, Builder, Operand, UnreadableNode, Value
from hydrabench.checkpoints.foreign.onnx_reader.elementwise import ELEMENTWISE
from hydrabench.checkpoints.foreign.onnx_reader.layers import LAYERS, OperatorRule
from hydrabench.checkpoints.foreign.onnx_reader.nodes import OnnxNode
from hydrabench.checkpoints.foreign.onnx_reader.patterns import put_together
from hydrabench.checkpoints.foreign.onnx_reader.structure import STRUCTURE
from hydrabench.checkpoints.header import shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPERATORS: dict[str, OperatorRule] = {**LAYERS, **ELEMENTWISE, **STRUCTURE}
RANDOM = ("Random", "Multinomial", "Bernoulli")  # how such operators begin
QUANTISED = ("Quantize", "Dequantize", "QLinear", "DynamicQuantize", "ConvInteger", "MatMulInteger", "QGemm")


def network_of(model: ModelProto, build: Builder) -> fx.GraphModule:
    """Return the network of a file with one input and one output.

    Raises: UnreadableNode, whose text names the node and its operator.
    """
    graph = model.graph
    reading = _Reading(build, {one.domain: one.version for one in model.opset_import}, _reads(graph))
    reading.take(graph)
    (image,) = inputs_of(graph)
    reading.values[image.name] = build.image
    reading.run(graph.node)
    output = reading.values.get(graph.output[0].name)
    if not isinstance(output, Value):
        raise UnreadableNode("its output does not depend on its input")
    network = build.finished(output)
    put_together(network.graph)
    network.graph.lint()
    network.recompile()
    return network


def inputs_of(graph: GraphProto) -> list[Any]:
    """The inputs of a graph that hold no constants."""
    constants = {tensor.name for tensor in graph.initializer}
    return [one for one in graph.input if one.name not in constants]


def _reads(graph: GraphProto) -> Counter[str]:
    """Return how often each value is read, subgraphs included."""
    return Counter([*_names_read(graph), *(one.name for one in graph.output)])


def _names_read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from _names_read(inner)
                yield from (one.name for one in inner.output)


class _Reading:
    """The values of a graph, by name, as far as it has been read."""

    def __init__(self, build: Builder, opsets: dict[str, int], reads: Counter[str]) -> None:
        self.build, self.opsets, self.reads = build, opsets, reads
        self.values: dict[str, Operand] = {}

    def take(self, graph: GraphProto) -> None:
        """Add the constants of a graph."""
        from onnx.numpy_helper import to_array  # noqa: PLC0415 - may be missing

        for tensor in graph.initializer:
            self.values[tensor.name] = to_array(tensor)

    def run(self, nodes: Iterable[NodeProto]) -> None:
        """Read nodes, which stand in an order in which they can be computed."""
        for proto in nodes:
            try:
                found = self._read(proto)
            except UnreadableNode as reason:
                raise UnreadableNode(f"operator {_operator(proto)} of node {_title(proto)} {reason}") from reason
            outputs = [found] if isinstance(found, np.ndarray | Value) else found
            self.values.update(zip(proto.output, outputs, strict=False))

    def _read(self, proto: NodeProto) -> Operand | Sequence[Operand]:
        missing = [name for name in proto.input if name and name not in self.values]
        if missing:
            raise UnreadableNode(f"reads {missing[0]}, which nothing before it computes")
        inputs = [self.values[name] if name else None for name in proto.input]
        node = OnnxNode(proto, inputs, self.opsets.get(proto.domain, 0), self.reads)
        known = proto.domain in ("", "ai.onnx")
        if known and proto.op_type == "If":
            return self._branch(node)
        if known and not any(isinstance(one, Value) for one in inputs) and not _of_the_batch(node):
            return _folded(node)
        if proto.op_type.startswith(QUANTISED):
            raise UnreadableNode(
                "belongs to a quantised network: it rounds values, which hides the gradient from attacks and has no "
                "sound bounds; export the network before it is quantised"
            )
        rule = OPERATORS.get(proto.op_type) if known else None
        if rule is None:
            raise UnreadableNode("is not one that is read")
        return rule(self.build, node)

    def _branch(self, node: OnnxNode) -> Sequence[Operand]:
        """The branch of an If whose condition is known."""
        condition = node.weight(0)
        branch = node.attribute("then_branch" if bool(np.all(condition)) else "else_branch")
        self.take(branch)
        self.run(branch.node)
        return [self.values[one.name] for one in branch.output]


def _operator(proto: NodeProto) -> str:
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
    return shown(f"{domain}{proto.op_type}")


def _title(proto: NodeProto) -> str:
    return shown(proto.name or (proto.output[0] if proto.output else "without a name"))


def _of_the_batch(node: OnnxNode) -> bool:
    """Return whether a node makes a constant for every image of a batch, whose size is not known."""
    place = {"Expand": 1, "ConstantOfShape": 0}.get(node.proto.op_type)
    shape = None if place is None else node.constant(place)
    return shape is not None and BATCH in shape


def _folded(node: OnnxNode) -> Sequence[Array]:
    """Return what a node computes from constants, by the reference implementation of the onnx package."""
    from onnx.helper import make_function, make_operatorsetid  # noqa: PLC0415 - may be missing
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    proto = node.proto
    if proto.op_type.startswith(RANDOM):
        raise UnreadableNode("draws random numbers")
    names = list(dict.fromkeys(name for name in proto.input if name))
    outputs = [name for name in proto.output if name]
    function = make_function("folded", "node", names, outputs, [proto], [make_operatorsetid("", node.opset)])
    values = {name: value for name, value in zip(proto.input, node.inputs, strict=True) if name}
    try:
        return [np.asarray(found) for found in ReferenceEvaluator(function).run(outputs, values, {})]
    except Exception as error:  # whatever damaged constants make of the evaluator
        raise UnreadableNode(f"cannot be computed from its constants ({shown(str(error), 100)})") from error
