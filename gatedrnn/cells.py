"""GRUCell and LSTMCell: torch.nn's cells, by interface, parameters and numbers.

As in torch.nn, the constructors check nothing: sizes of 0 work, and `bias` is merely truthy.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNCellBase

from . import functional
from .dropin import fx_call, refuse_qconfig, refuse_script, tensors_by_name

__all__ = ["GRUCell", "LSTMCell"]

_Device = torch.device | str | int | None
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(RNNCellBase):
    """What GRUCell and LSTMCell share beyond torch.nn's RNNCellBase."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":
            refuse_qconfig(self, value)
        super().__setattr__(name, value)

    def _weights(self) -> Any:
        own = self._parameters
        try:  # spelled out, not looped over: a step takes little longer than its calls
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        except KeyError:  # one is parametrized, or set by a hook
            return tensors_by_name(self, _NAMES)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)


class GRUCell(_Cell):
    """One step of a gated recurrent unit: a drop-in for :class:`torch.nn.GRUCell`.

    Computes (Cho et al. 2014, arXiv:1406.1078, in PyTorch's variant, where b_hn stands inside the
    product with the reset gate)::

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: whether bias_ih and bias_hh exist; without, both are None.
        device, dtype: of the parameters.

    Inputs: ``input, hx=None``
        input: (B, I) or (I,), in the parameters' dtype and on their device.
        hx: state (B, H) or (H,), as the input; zeros if None.

    Output: the next state, laid out as hx, in the input's dtype (under autocast: the autocast
    dtype).

    Parameters: ``weight_ih`` (3H, I), ``weight_hh`` (3H, H), ``bias_ih`` and ``bias_hh`` (3H), rows
    r, z, n.

    Raises:
        ValueError, RuntimeError: inputs, as :func:`gatedrnn.functional.gru_cell` raises them.

    Example::

        >>> cell = gatedrnn.GRUCell(10, 20)
        >>> hx = torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     hx = cell(x, hx)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Make one step; shapes and errors stand in the class's docstring."""
        if isinstance(input, Proxy):
            return fx_call(self, input, hx)
        return functional.gru_cell(input, hx, *self._weights())


class LSTMCell(_Cell):
    """One step of a long short-term memory: a drop-in for :class:`torch.nn.LSTMCell`.

    Computes (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)::

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of both states.
        bias: whether bias_ih and bias_hh exist; without, both are None.
        device, dtype: of the parameters.

    Inputs: ``input, hx=None``
        input: (B, I) or (I,), in the parameters' dtype and on their device.
        hx: states (h, c), (B, H) or (H,) each, as the input; zeros if None.

    Outputs: the next states (h', c'), laid out as hx, in the input's dtype (under autocast: the
    autocast dtype).

    Parameters: ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), ``bias_ih`` and ``bias_hh`` (4H), rows
    i, f, g, o.

    Raises:
        TypeError: hx is not a pair of tensors.
        ValueError, RuntimeError: inputs, as :func:`gatedrnn.functional.lstm_cell` raises them.

    Example::

        >>> cell = gatedrnn.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h, c = cell(torch.randn(3, 10), (h, c))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make one step; shapes and errors stand in the class's docstring."""
        if isinstance(input, Proxy):
            return fx_call(self, input, hx)
        return functional.lstm_cell(input, hx, *self._weights())
