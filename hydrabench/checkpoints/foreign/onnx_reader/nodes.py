"""A node of an ONNX graph with the operands that it takes: attributes and inputs under one roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.checkpoints.foreign.onnx_reader.builder import Array, Operand, UnreadableNode, Value

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class OnnxNode:
    """One node. inputs: its operands, None where an optional one is missing. opset: of its domain.

    reads: how often the graph reads each value, by name.
    """

    proto: NodeProto
    inputs: Sequence[Operand | None]
    opset: int
    reads: Mapping[str, int]

    @property
    def operator(self) -> str:
        """The operator's name in the file, with its domain if that is not ONNX's."""
        domain = "" if self.proto.domain in ("", "ai.onnx") else f"{self.proto.domain}."
        return f"{domain}{self.proto.op_type}"

    @property
    def sources(self) -> Sequence[str]:
        """Names of the inputs."""
        return [*self.proto.input]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, text as str, or what it is if the node does not say it."""
        from onnx.helper import get_attribute_value  # noqa: PLC0415 - may be missing

        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def operand(self, position: int) -> Operand:
        """An input that must be there."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise UnreadableNode(f"lacks input {position}")
        return found

    def value(self, position: int = 0) -> Value:
        """An input that depends on the images."""
        found = self.operand(position)
        if not isinstance(found, Value):
            raise UnreadableNode(f"takes a constant for input {position} and values of the images for another")
        return found

    def constant(self, position: int) -> Array | None:
        """An input that does not depend on the images; None if it is missing."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(found, Value):
            raise UnreadableNode(f"computes its input {position}, {self.sources[position]}, from the images")
        return found

    def weight(self, position: int) -> Array:
        """A constant that must be there."""
        found = self.constant(position)
        if found is None:
            raise UnreadableNode(f"lacks input {position}")
        return found

    def setting(self, name: str, position: int, default: Any = None) -> Any:
        """Return what older opsets have as an attribute and newer ones as an input; arrays as lists or numbers."""
        given = self.attribute(name)
        if given is not None:
            return given
        found = self.constant(position)
        return default if found is None else np.asarray(found).tolist()

    def refuse(self, name: str, *allowed: Any) -> None:
        """Raises: UnreadableNode if an attribute is given and is none of those allowed."""
        found = self.attribute(name, allowed[0])
        if found not in allowed:
            raise UnreadableNode(f"has {name}={found!r}, which has no rule")

    def only_first_output(self) -> None:
        """Raises: UnreadableNode if something reads another output than the first."""
        if any(self.reads.get(name) for name in self.proto.output[1:]):
            raise UnreadableNode("has a second output that is read, which has no rule")

    def reads_alone(self, position: int) -> bool:
        """Return whether nothing else reads this input."""
        return self.reads[self.sources[position]] == 1
