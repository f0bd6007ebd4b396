"""GRU and LSTM: torch.nn's modules, by interface, parameters and numbers, over gatedrnn's kernels.

Construction, initial values, state dicts, pickling, repr and the bookkeeping of _flat_weights are
those of torch.nn.RNNBase, from which both derive. Ours are the signatures, the forward, and a
__setattr__ that leaves the module whole when it refuses. The forward calls no method that a
subclass could have replaced by one with another signature.
"""

import operator
import weakref
from collections.abc import Callable
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from . import checks, functional
from .dropin import fx_call, refuse_qconfig, refuse_script, tensors_by_name
from .extended import Extended
from .options import Lengths, chosen

__all__ = ["GRU", "LSTM"]

_Device = torch.device | str | int | None


class _Recurrent(Extended):
    """What GRU and LSTM share beyond torch.nn.RNNBase."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":
            refuse_qconfig(self, value)
        flat = self.__dict__.get("_flat_weights")
        if flat is None or name not in self._flat_weights_names:
            return super().__setattr__(name, value)
        before = list(flat)
        try:
            super().__setattr__(name, value)
        except BaseException:
            flat[:] = before  # RNNBase notes the value before it is refused
            raise

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # RNNBase evaluates parametrizations here to refresh _flat_weights. Without a graph they
        # are leaves, and the module can be deep-copied afterwards.
        with torch.no_grad():
            return super()._apply(fn, recurse)

    def _weights(self) -> list[Tensor]:
        """The weights of this call, by name, in the order of _flat_weights_names.

        A parametrized weight is evaluated once, where torch.nn evaluates it four times (so that a
        spectral norm in training mode makes one power iteration per forward, not four), and it is
        not kept: no graph hangs on _flat_weights after a forward.
        """
        weights = tensors_by_name(self, self._flat_weights_names)
        flat = self._flat_weights
        # A parameter that was exchanged behind __setattr__ (in _parameters, by functional_call) is
        # noted, unless it is a tracer's.
        if not all(map(operator.is_, weights, flat)) and not torch.compiler.is_compiling():
            for k, w in enumerate(weights):
                if w is not flat[k] and isinstance(w, nn.Parameter):
                    flat[k] = w
                    self._flat_weight_refs[k] = weakref.ref(w)
        return weights

    def _call(
        self,
        run: Callable[..., Any],
        input: Any,
        hx: Any,
        lengths: Lengths,
        resets: Tensor | None,
        reset_hx: Any,
        output_hidden_states: bool,
    ) -> Any:
        """Run the layers by one of functional's."""
        if isinstance(input, Proxy):
            return fx_call(
                self,
                input,
                hx,
                lengths=lengths,
                resets=resets,
                reset_hx=reset_hx,
                output_hidden_states=output_hidden_states,
            )
        if self.learn_initial_state:
            hx, reset_hx = self._learned_states(input, hx, resets, reset_hx)
        dropout = self.dropout if self.training else 0.0
        options = chosen(lengths, resets, reset_hx, output_hidden_states, self.recompute)
        weights, sizes = self._weights(), self._sizes()
        return run(input, weights, hx, sizes, dropout, self.batch_first, options)

    def _sizes(self) -> checks.Sizes:
        """The sizes that the module declares, which its weights and inputs must have."""
        return checks.sizes(
            self.mode,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            2 if self.bidirectional else 1,
            self.bias,
        )

    def __setstate__(self, d: dict[str, Any]) -> None:
        noted = d["all_weights"] if "all_weights" in d else d["_all_weights"]
        if not isinstance(noted[0][0], str):
            # Long ago tensors stood there. RNNBase finds their names too, but fails where there is
            # a projection and no bias.
            self.__dict__.update(d)
            self.__dict__.setdefault("proj_size", 0)
            sizes = self._sizes()
            names = [checks.weight_name(sizes, k) for k in range(len(sizes.shapes))]
            each = len(sizes.stems)
            d = {
                **{k: v for k, v in d.items() if k != "all_weights"},
                "_all_weights": [names[k : k + each] for k in range(0, len(names), each)],
                "_flat_weights_names": names,
                "_flat_weights": [d["_parameters"].get(n) for n in names],
            }
        super().__setstate__(d)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)


class GRU(_Recurrent):
    """A stack of gated recurrent units over a sequence: a drop-in for :class:`torch.nn.GRU`.

    Each step of each layer computes (Cho et al. 2014, arXiv:1406.1078, in PyTorch's variant, where
    b_hn stands inside the product with the reset gate)::

        r  = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z  = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    The input of a layer after the first is the output of the one before, after dropout.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state and, per direction, of the output.
        num_layers: L, layers in the stack.
        bias: whether b_ih and b_hh exist.
        batch_first: whether 3-D input and output are (B, T, .) instead of (T, B, .). States never
            are; unbatched and packed input do not care.
        dropout: probability of zeroing an element of each layer's output but the last one's, in
            training mode. On the CPU the masks are those of torch.nn for the same seed.
        bidirectional: whether every layer has a second direction that runs backwards (D = 2).
        device, dtype: of the parameters.
        learn_initial_state: whether the state that a sequence begins from, where no hx is given, is
            a parameter, ``h_0`` (L*D, H), which begins as zeros.
        recompute: whether training keeps the output, and a quarter of the gates at most, and makes
            the others again in backward, in far less memory and somewhat more time;
            ``rnn.recompute = True`` does it later.

    Inputs: ``input, hx=None``
        input: (T, B, I), (B, T, I) if batch_first, (T, I) without a batch, or a PackedSequence,
            sorted or not; in the parameters' dtype and on their device.
        hx: initial state (L*D, B, H), or (L*D, H) without a batch; zeros if None.

    Besides, by keyword only, for a padded 3-D input:
        lengths: (B,), integers in any order, on any device: how many steps of each sequence there
            are. Equal to packing: final states are those at each sequence's own end, the second
            direction begins there, padding is never read, its output and gradient are zero. On the
            CPU the time is that of the steps there are. Lengths on a GPU, or of a compiled or
            exported program, are not read by the host: all T steps run, and a length outside of
            1 .. T counts as the nearest inside.
        resets: boolean, (T, B), or (B, T) if batch_first: steps before which a sequence begins
            anew (TorchRL's is_init, Stable-Baselines3's episode_starts). Both directions are cut
            there; a direction's final state is that of its last step. The host reads them.
        reset_hx: the state that resets begin from, as hx; by default hx itself, or the learned one.
        output_hidden_states: as in Hugging Face's models, a third result: the states of
            all steps, a tuple of (T, B, D*H) for each layer, before dropout.

    Outputs: ``output, h_n``
        output: (T, B, D*H), laid out or packed as the input; a transposed view if batch_first.
        h_n: final state, laid out as hx; each sequence's own last step.
        Both in the input's dtype; under autocast in the autocast dtype.

    Parameters: ``weight_ih_l{k}`` (3H, I or D*H), ``weight_hh_l{k}`` (3H, H), ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` (3H), rows r, z, n, with the suffix ``_reverse`` for the second direction;
    drawn from U(-1/sqrt(H), 1/sqrt(H)) as torch.nn draws them.

    Raises:
        ValueError, TypeError: arguments of the constructor, as torch.nn.GRU raises them.
        ValueError, RuntimeError: inputs, as :func:`gatedrnn.functional.gru` raises them.

    Example::

        >>> rnn = gatedrnn.GRU(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
        >>> output.shape
        torch.Size([5, 3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        **unknown: Any,
    ) -> None:
        if "proj_size" in unknown:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **unknown,  # RNNBase names them in its TypeError
        )
        self._extend(learn_initial_state, recompute)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: Tensor | None = None,
        output_hidden_states: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        output_hidden_states: Literal[False] = False,
    ) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: Any = None,
        output_hidden_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: Any = None,
        output_hidden_states: bool = False,
    ) -> Any:
        """Run the layers over a sequence; shapes and errors stand in the class's docstring."""
        return self._call(
            functional.run_gru, input, hx, lengths, resets, reset_hx, output_hidden_states
        )


class LSTM(_Recurrent):
    """A stack of long short-term memory layers over a sequence: a drop-in for torch.nn.LSTM.

    Each step of each layer computes (Hochreiter & Schmidhuber 1997, with the forget gate of Gers
    et al. 2000)::

        i  = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f  = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g  = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o  = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    and with a projection (Sak et al. 2014, arXiv:1402.1128) ``h' = W_hr (o * tanh(c'))``. The input
    of a layer after the first is the output of the one before, after dropout.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the cell state.
        num_layers: L, layers in the stack.
        bias: whether b_ih and b_hh exist.
        batch_first: whether 3-D input and output are (B, T, .) instead of (T, B, .). States never
            are; unbatched and packed input do not care.
        dropout: probability of zeroing an element of each layer's output but the last one's, in
            training mode. On the CPU the masks are those of torch.nn for the same seed.
        bidirectional: whether every layer has a second direction that runs backwards (D = 2).
        proj_size: features of the projected state h, smaller than H; 0 for no projection. P below
            is proj_size, or H without a projection.
        device, dtype: of the parameters.
        learn_initial_state: whether the states that a sequence begins from, where no hx is given,
            are parameters, ``h_0`` (L*D, P) and ``c_0`` (L*D, H), which begin as zeros.
        recompute: whether training keeps the output and the cell states, and a quarter of the gates
            at most, and makes the others again in backward, in far less memory and somewhat more
            time; ``rnn.recompute = True`` does it later.

    Inputs: ``input, hx=None``
        input: (T, B, I), (B, T, I) if batch_first, (T, I) without a batch, or a PackedSequence,
            sorted or not; in the parameters' dtype and on their device.
        hx: initial states (h_0, c_0) of shapes (L*D, B, P) and (L*D, B, H), or (L*D, P) and
            (L*D, H) without a batch; zeros if None.

    Besides, by keyword only, for a padded 3-D input:
        lengths: (B,), integers in any order, on any device: how many steps of each sequence there
            are. Equal to packing: final states are those at each sequence's own end, the second
            direction begins there, padding is never read, its output and gradient are zero. On the
            CPU the time is that of the steps there are. Lengths on a GPU, or of a compiled or
            exported program, are not read by the host: all T steps run, and a length outside of
            1 .. T counts as the nearest inside.
        resets: boolean, (T, B), or (B, T) if batch_first: steps before which a sequence begins
            anew (TorchRL's is_init, Stable-Baselines3's episode_starts). Both directions are cut
            there; a direction's final state is that of its last step. The host reads them.
        reset_hx: the state that resets begin from, as hx; by default hx itself, or the learned one.
        output_hidden_states: as in Hugging Face's models, a third result: the states of
            all steps, (h, c): tuples of (T, B, D*P) and of (T, B, D*H) for each layer, before
            dropout.

    Outputs: ``output, (h_n, c_n)``
        output: (T, B, D*P), laid out or packed as the input; a transposed view if batch_first.
        h_n, c_n: final states, laid out as hx; each sequence's own last step.
        All in the input's dtype; under autocast in the autocast dtype.

    Parameters: ``weight_ih_l{k}`` (4H, I or D*P), ``weight_hh_l{k}`` (4H, P), ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` (4H), rows i, f, g, o, and ``weight_hr_l{k}`` (P, H) with a projection, with
    the suffix ``_reverse`` for the second direction; drawn from U(-1/sqrt(H), 1/sqrt(H)) as
    torch.nn draws them.

    Raises:
        ValueError, TypeError: arguments of the constructor, as torch.nn.LSTM raises them.
        TypeError: hx is not a pair of tensors.
        ValueError, RuntimeError: inputs, as :func:`gatedrnn.functional.lstm` raises them.

    Example::

        >>> rnn = gatedrnn.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = rnn(torch.randn(5, 3, 10))
        >>> output.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
            **unknown,  # RNNBase names them in its TypeError
        )
        self._extend(learn_initial_state, recompute)

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape that c_0 must have: (L*D, B, H)."""
        rows, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return rows, batch, self.hidden_size

    # For subclasses that call them, the helpers that torch.nn.LSTM has on two states.

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raise as torch.nn.LSTM does if a batched input and its states do not fit together."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Reorder the batch of both states; None leaves them as they are."""
        if permutation is None:
            return hx
        h, c = checks.pair("LSTM", hx)
        return h.index_select(1, permutation), c.index_select(1, permutation)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: tuple[Tensor, Tensor] | None = None,
        output_hidden_states: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        output_hidden_states: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: Any = None,
        output_hidden_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_hx: Any = None,
        output_hidden_states: bool = False,
    ) -> Any:
        """Run the layers over a sequence; shapes and errors stand in the class's docstring."""
        return self._call(
            functional.run_lstm, input, hx, lengths, resets, reset_hx, output_hidden_states
        )
