"""ONNX Runtime and OpenVINO on the CPU, where they and the package onnx can be imported.

Both run the same ONNX model of a torch.nn layer's weights: inference in float32, of one shape. None
is required, and none is a reference: what it computes is checked before it is timed. Each gets what
its users would give it: as many threads as torch, its input in place, its outputs in buffers of
their own that are written anew by every call.
"""

import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

OPSET, IR = 14, 8  # of 2021: everything reads them, and GRU and LSTM have not changed since
# Rows of blocks of H in torch's order (r, z, n and i, f, g, o), in the order that ONNX wants:
# z, r, h and i, o, f, c.
ORDER = {"GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}


class Peer(Protocol):
    def __call__(self) -> object: ...

    def outputs(self) -> list[np.ndarray]:
        """y (B, T, H), hn (L, B, H) and, of an LSTM, cn, as the last call left them."""


def onnx_model(theirs: nn.RNNBase, batch: int, steps: int) -> bytes:
    """A torch.nn.GRU or LSTM with batch_first=True and one direction, as ONNX of this shape.

    (B, T, I) -> Transpose -> [GRU or LSTM -> Squeeze] of each layer -> Transpose -> (B, T, H)
    """
    onnx = importlib.import_module("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    H, L, kind = theirs.hidden_size, theirs.num_layers, theirs.mode
    finals = ["hn", "cn"] if kind == "LSTM" else ["hn"]
    nodes, constants = [], [onnx.numpy_helper.from_array(np.array([1]), "direction")]

    def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def blocks(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy().reshape(-1, H, *tensor.shape[1:])[ORDER[kind]]

    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    node("Transpose", ["x"], ["x0"], perm=[1, 0, 2])
    for k, (w_ih, w_hh, b_ih, b_hh) in enumerate(theirs.all_weights):
        arrays = {  # (directions, G*H, I), (directions, G*H, H), (directions, 2*G*H)
            f"W{k}": blocks(w_ih).reshape(1, -1, w_ih.shape[1]),
            f"R{k}": blocks(w_hh).reshape(1, -1, H),
            f"B{k}": np.concatenate([blocks(b_ih), blocks(b_hh)]).reshape(1, -1),
        }
        constants += [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()]
        node(kind, [f"x{k}", *arrays], [f"y{k}", *(f"{name}{k}" for name in finals)],
             hidden_size=H, **options)
        node("Squeeze", [f"y{k}", "direction"], [f"x{k + 1}"])  # (T, directions, B, H)
    node("Transpose", [f"x{L}"], ["y"], perm=[1, 0, 2])
    for name in finals:
        node("Concat", [f"{name}{k}" for k in range(L)], [name], axis=0)

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, real, shape)

    graph = helper.make_graph(
        nodes, kind, [value("x", batch, steps, theirs.input_size)],
        [value("y", batch, steps, H), *(value(name, L, batch, H) for name in finals)], constants)
    model = helper.make_model(graph, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model)
    return model.SerializeToString()


class OnnxRuntime:
    """Input and outputs are bound to arrays once; its threads spin during a call and not after."""

    def __init__(self, model: bytes, x: np.ndarray, threads: int) -> None:
        library = importlib.import_module("onnxruntime")
        options = library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = library.InferenceSession(model, options,
                                                 providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("x", x)
        self._outputs = []
        for output in self._session.get_outputs():
            array = np.full(output.shape, np.nan, np.float32)
            self._binding.bind_output(output.name, "cpu", 0, np.float32, array.shape,
                                      array.ctypes.data)
            self._outputs.append(array)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray]:
        return self._outputs


class OpenVino:
    """One infer request, its input shared with an array."""

    def __init__(self, model: bytes, x: np.ndarray, threads: int) -> None:
        library = importlib.import_module("openvino")
        compiled = library.compile_model(library.Core().read_model(model), "CPU", {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        })
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(0, library.Tensor(x, shared_memory=True))
        self._count = len(compiled.outputs)

    def __call__(self) -> None:
        self._request.infer(share_outputs=True)

    def outputs(self) -> list[np.ndarray]:
        return [self._request.get_output_tensor(k).data for k in range(self._count)]


PEERS: dict[str, Callable[[bytes, np.ndarray, int], Peer]] = {
    "onnxruntime": OnnxRuntime, "openvino": OpenVino,
}


def importable() -> list[str]:
    """Those that can be imported; none without the package that makes their models."""
    if not importlib.util.find_spec("onnx"):
        return []
    return [name for name in PEERS if importlib.util.find_spec(name)]


def versions(names: list[str]) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}
