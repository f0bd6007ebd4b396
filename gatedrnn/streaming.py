"""Stream: a stack of layers one step at a time, from weights that are packed once."""

from typing import Any

import torch
from torch import Tensor

from . import checks, functional, raw
from .modules import GRU, LSTM

__all__ = ["Stream"]

_ops = torch.ops.gatedrnn


class Stream:
    """The steps of a GRU or LSTM as they come, with states that stay in place.

    A step gives what the module would give for it in the middle of a sequence, in less time: on the
    CPU the weights are packed for the kernels once, all layers are one call, and nothing is
    allocated but the output. Elsewhere, and for dtypes without kernels, a step is the module's own
    call.

    Weights are read when the stream is made, and by :meth:`reload`: a change in between, by an
    optimizer or a loaded state dict, is not seen. Dropout is never applied, and there are no
    gradients: to train, call the module on chunks and hand the state on.

    Args:
        module: a unidirectional gatedrnn.GRU or gatedrnn.LSTM.
        batch: B, the sequences that go side by side.
        hx: their initial state, as the module takes it; the module's own if None.

    Raises:
        TypeError: module is not one of the two.
        ValueError: it is bidirectional, or batch is not positive.
        RuntimeError: shapes, dtypes or devices do not fit the module's.

    Example::

        >>> rnn = gatedrnn.LSTM(10, 20, num_layers=2)
        >>> stream = gatedrnn.Stream(rnn, batch=1)
        >>> for frame in torch.randn(5, 1, 10):
        ...     output = stream.step(frame)
        >>> output.shape
        torch.Size([1, 20])
    """

    def __init__(self, module: GRU | LSTM, batch: int, hx: Any = None) -> None:
        if not isinstance(module, (GRU, LSTM)):
            raise TypeError(
                f"Stream: expected a gatedrnn.GRU or gatedrnn.LSTM, got {type(module).__name__}"
            )
        if module.bidirectional:
            raise ValueError("Stream: a bidirectional module needs its sequences' ends first")
        if batch < 1:
            raise ValueError(f"Stream: expected batch to be positive, got {batch}")
        self.module, self.batch = module, batch
        self.reload()
        self.reset(hx)

    def reload(self) -> None:
        """Read the module's weights again; the states stay."""
        m = self.module
        with torch.no_grad():
            self._weights = [w.detach() for w in m._weights()]
        self._sizes, like = m._sizes(), self._weights[0]
        checks.check_tensors(m.mode, like[:, : m.input_size], self._weights, None, self._sizes, 1)
        self._features, self._dtype, self._device = like.size(1), like.dtype, like.device
        self._threads = torch.get_num_threads()
        self._packed: Tensor | None = None
        if like.is_cpu and raw.has_kernels(m.mode.lower(), like) and not raw._emulated:
            self._packed = _ops.stream_pack.default(
                self._weights, m.mode == "LSTM", m.bias, self.batch, self._threads
            )

    def reset(self, hx: Any = None) -> None:
        """Begin again at hx, at the module's own initial state if None."""
        m, like = self.module, self._weights[0]
        depth = m.num_layers
        shapes = [(depth, self.batch, w) for w in self._sizes.widths]
        if hx is None and m.learn_initial_state:
            hx, _ = m._learned_states(like.new_empty(1, self.batch, 0), None, None, None)
        if hx is None:
            given = [like.new_zeros(s) for s in shapes]
        else:
            given = list(checks.pair(m.mode, hx)) if m.mode == "LSTM" else [hx]
        x = like.new_empty(1, self.batch, self._features)
        checks.check_tensors(m.mode, x, self._weights, tuple(given), self._sizes, self.batch)
        # Before a step and after it, in turn.
        self._h = like.new_empty(2, *shapes[0])
        self._now = 0
        self._h[0] = given[0].detach()
        self._c: Tensor | None = None
        if len(given) == 2:
            self._c = like.new_empty(shapes[1]).copy_(given[1].detach())

    @property
    def hx(self) -> Any:
        """The present state, as the module takes and returns it: a copy."""
        h = self._h[self._now].clone()
        return h if self._c is None else (h, self._c.clone())

    def step(self, input: Tensor) -> Tensor:
        """One step of all sequences: input (B, I) -> the last layer's output (B, P)."""
        if (
            input.shape != (self.batch, self._features)
            or input.dtype is not self._dtype
            or input.device != self._device
        ):
            self._refuse(input)
        if self._packed is None:
            return self._step_of_module(input)
        y = _ops.stream_step.default(
            input, self._h, self._c, self._packed, self._now, self._threads
        )
        self._now = 1 - self._now
        return y

    __call__ = step

    @torch.no_grad()
    def _step_of_module(self, input: Tensor) -> Tensor:
        x, h, sizes = input.unsqueeze(0), self._h[self._now], self._sizes
        if self._c is None:
            y, after = functional.run_gru(x, self._weights, h, sizes, 0.0, False)
        else:
            y, (after, c) = functional.run_lstm(
                x, self._weights, (h, self._c), sizes, 0.0, False
            )
            self._c.copy_(c)
        h.copy_(after)
        return y.squeeze(0)

    def _refuse(self, input: Tensor) -> None:
        expected = f"({self.batch}, {self._features}) of {self._dtype} on {self._device}"
        got = f"{tuple(input.shape)} of {input.dtype} on {input.device}"
        raise RuntimeError(f"Stream: expected an input {expected}, got {got}")
