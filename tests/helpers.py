"""Comparison of torch.nn's recurrent modules with ours, side by side in one process.

A test names a pair of classes and what it does to a module; the helpers build both modules with
the same weights and hold result against result: structure, types, shapes, strides and values.
Values are compared tightly but not in detail here: the numeric suite has its own rule.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gatedrnn

LAYER_PAIRS = [(nn.GRU, gatedrnn.GRU), (nn.LSTM, gatedrnn.LSTM)]
CELL_PAIRS = [(nn.GRUCell, gatedrnn.GRUCell), (nn.LSTMCell, gatedrnn.LSTMCell)]

_OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bias": False, "bidirectional": True, "batch_first": True},
]
_LSTM_OPTIONS = [
    {"proj_size": 2},
    {"proj_size": 3, "num_layers": 2, "bidirectional": True, "bias": False},
]

TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    # tanh and sigmoid have poles off the real axis: near one of them an error grows.
    torch.complex64: {"rtol": 2e-3, "atol": 1e-3},
    torch.complex128: {"rtol": 1e-8, "atol": 1e-9},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
}


def _names(classes: tuple[type, type]) -> str:
    return classes[0].__name__


def _option_id(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()) or "default"


layers = pytest.mark.parametrize(
    ("theirs", "ours"), [pytest.param(*p, id=_names(p)) for p in LAYER_PAIRS]
)
cells = pytest.mark.parametrize(
    ("theirs", "ours"), [pytest.param(*p, id=_names(p)) for p in CELL_PAIRS]
)
every_class = pytest.mark.parametrize(
    ("theirs", "ours"), [pytest.param(*p, id=_names(p)) for p in LAYER_PAIRS + CELL_PAIRS]
)
layer_options = pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        pytest.param(*p, o, id=f"{_names(p)}-{_option_id(o)}")
        for p in LAYER_PAIRS
        for o in _OPTIONS + (_LSTM_OPTIONS if p[0] is nn.LSTM else [])
    ],
)


def pair(theirs: type, ours: type, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """A torch.nn module and ours, built with the same arguments, with equal, separate weights."""
    a = theirs(*args, **kwargs)
    b = ours(*args, **kwargs)
    b.load_state_dict(a.state_dict())
    return a, b


def is_lstm(module: Any) -> bool:
    """Whether a class or an instance has a cell state."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    return "LSTM" in name


def hidden(module: Any, batch: int | None, **kwargs: Any) -> Any:
    """A random hx of the form that ``module`` takes; ``batch=None`` is the unbatched form."""
    sizes = [module.hidden_size]
    if isinstance(module, nn.RNNBase):
        depth = module.num_layers * (2 if module.bidirectional else 1)
        sizes = [module.proj_size or module.hidden_size, module.hidden_size]
        shapes = [(depth, s) if batch is None else (depth, batch, s) for s in sizes]
    else:
        shapes = [(s,) if batch is None else (batch, s) for s in sizes * 2]
    if is_lstm(module):
        return tuple(torch.randn(s, **kwargs) for s in shapes)
    return torch.randn(shapes[0], **kwargs)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nested result, in order; of a PackedSequence only the data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif value is not None:
        for item in value:
            yield from tensors(item)


def leaf_copy(value: Any, requires_grad: bool = True) -> Any:
    """The same nest with every tensor replaced by a new leaf of equal value."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(requires_grad)
    if isinstance(value, PackedSequence):
        return value._replace(data=leaf_copy(value.data, requires_grad))
    return type(value)(leaf_copy(v, requires_grad) for v in value)


def _assert_close(
    actual: Tensor, expected: Tensor, tolerance: dict[str, float], label: str = ""
) -> None:
    """By default the absolute tolerance grows with the largest element: rounding in sums does."""
    if not tolerance:
        limits = TOLERANCE[expected.dtype]
        finite = expected.detach()[expected.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        tolerance = {"rtol": limits["rtol"], "atol": limits["atol"] * max(1.0, largest)}
    torch.testing.assert_close(
        actual, expected, equal_nan=True, msg=lambda text: f"{label}{text}", **tolerance
    )


def _visible_strides(t: Tensor) -> list[int]:
    return [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]


def assert_like(actual: Any, expected: Any, strides: bool = True, **tolerance: float) -> None:
    """Holds a (nested) result of ours against torch.nn's: structure, types, layout and values.

    Strides of dimensions of size one say nothing and are not compared.
    """
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert actual.device == expected.device
        assert actual.requires_grad == expected.requires_grad
        if strides and expected.numel():
            assert _visible_strides(actual) == _visible_strides(expected)
            assert actual.is_contiguous() == expected.is_contiguous()
        _assert_close(actual, expected, tolerance)
        return
    assert type(actual) is type(expected)
    if isinstance(expected, PackedSequence):
        assert_like(actual.data, expected.data, strides, **tolerance)
        assert torch.equal(actual.batch_sizes, expected.batch_sizes)
        assert actual.sorted_indices is expected.sorted_indices
        assert actual.unsorted_indices is expected.unsorted_indices
        return
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert_like(a, e, strides, **tolerance)


def backward(result: Any, seed: int = 7) -> None:
    """Backward of a nested result with random cotangents that depend on ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    outputs = [t for t in tensors(result) if t.requires_grad]
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    torch.autograd.backward(outputs, cotangents)


def assert_grads_like(actual: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    """Holds the gradients of all parameters, found by name, against torch.nn's."""
    theirs = dict(expected.named_parameters())
    mine = dict(actual.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if parameter.grad is None:
            assert mine[name].grad is None, name
            continue
        grad = mine[name].grad
        assert grad is not None, name
        _assert_close(grad, parameter.grad, tolerance, f"{name}.grad: ")


def error_of(call: Callable[[], Any]) -> Exception:
    """The exception that ``call`` raises; a failed test where it raises none."""
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def assert_same_error(ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Both calls fail with the same type of error and the same text."""
    expected, actual = error_of(theirs), error_of(ours)
    assert type(actual) is type(expected), (actual, expected)
    assert str(actual) == str(expected)


def run_python(code: str, timeout: float = 120.0) -> str:
    """Runs ``code`` in a fresh interpreter with warnings as errors; returns its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
