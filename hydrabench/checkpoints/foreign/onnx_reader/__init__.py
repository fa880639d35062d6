"""ONNX files as networks of torch: layers with parameters, and functions that bounds can read.

`reading` opens a file and compares what was read with onnxruntime; `builder` keeps the values and the graph of torch.fx
that grows; `nodes` is what a node says of itself; `layers`, `elementwise` and `structure` say what the operators are;
`patterns` puts activations together again that exporters take apart.
"""

from hydrabench.checkpoints.foreign.onnx_reader.reading import OnnxNetwork, read_onnx, whole_file

__all__ = ["OnnxNetwork", "read_onnx", "whole_file"]
