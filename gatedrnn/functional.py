"""GRU and LSTM as functions of explicit weights: stacked layers, directions, dropout, packing.

Arguments are checked here (checks.py has the sentences), autocast is applied, and the stack of
layers is walked; ops computes one layer at a time. Sizes, here and in the docstrings:
T steps, B sequences, I inputs, H hidden units, P outputs per direction (H without projection),
L layers, D directions (2 if bidirectional), G gates (3 for GRU, rows r, z, n; 4 for LSTM, rows
i, f, g, o). The equations stand in reference.py.

Autocast: when it is on for the input's device, and input, states and weights are all float32,
float16 or bfloat16, they are cast to the autocast dtype, and that is the dtype of all results.
Other dtypes are left as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks, ops, ragged, raw, traced, variants
from .options import PLAIN, Lengths, Options, chosen

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell"]

_any_autocast = torch._C._is_any_autocast_enabled
_AUTOCAST_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))


@overload
def gru(
    input: Tensor,
    weights: Sequence[Tensor],
    hx: Tensor | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    lengths: Lengths = ...,
    resets: Tensor | None = ...,
    reset_hx: Tensor | None = ...,
    output_hidden_states: Literal[False] = ...,
    recompute: bool = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def gru(
    input: PackedSequence,
    weights: Sequence[Tensor],
    hx: Tensor | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    output_hidden_states: Literal[False] = ...,
    recompute: bool = ...,
) -> tuple[PackedSequence, Tensor]: ...


@overload
def gru(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: Tensor | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    lengths: Lengths = ...,
    resets: Tensor | None = ...,
    reset_hx: Tensor | None = ...,
    output_hidden_states: bool,
    recompute: bool = ...,
) -> tuple[Any, ...]: ...


def gru(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: Tensor | None = None,
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Lengths = None,
    resets: Tensor | None = None,
    reset_hx: Tensor | None = None,
    output_hidden_states: bool = False,
    recompute: bool = False,
) -> tuple[Any, ...]:
    """Run a stack of GRU layers over a sequence; the function under :class:`gatedrnn.GRU`.

    Args:
        input: (T, B, I); (B, T, I) if batch_first; (T, I) without a batch; or a PackedSequence.
        weights: the tensors of ``torch.nn.GRU(...).parameters()`` in that order: per layer, then
            per direction, w_ih (3H, I for the first layer, D*H after), w_hh (3H, H), and either
            b_ih (3H) and b_hh (3H) everywhere or no bias at all. L follows from their number.
        hx: initial state (L*D, B, H), or (L*D, H) without a batch; zeros if None. For a
            PackedSequence its rows are in the caller's order.
        bidirectional: whether each layer has a second direction that runs backwards in time.
        dropout: probability of zeroing an element of what one layer hands to the next.
        training: whether dropout is active.
        batch_first: whether the first two dimensions of a 3-D input, and of the output, are (B, T).
        lengths, resets, reset_hx, output_hidden_states, recompute: as :class:`gatedrnn.GRU` takes
            them; with output_hidden_states there is a third result.

    Returns:
        The output (T, B, D*H), laid out and packed as the input was, and the final state, laid out
        as hx; both in the input's dtype (under autocast: in the autocast dtype).

    Raises:
        ValueError: the input is neither 2-D nor 3-D, or differs in dtype from the weights.
        RuntimeError: sizes, dtypes or devices do not fit together, T is 0, or a PackedSequence
            is inconsistent.

    Example::

        >>> m = torch.nn.GRU(10, 20, num_layers=2)
        >>> y, hn = gatedrnn.functional.gru(torch.randn(5, 3, 10), list(m.parameters()))
        >>> y.shape, hn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """
    sizes = checks.sizes_of("GRU", weights, 2 if bidirectional else 1)
    options = chosen(lengths, resets, reset_hx, output_hidden_states, recompute)
    probability = dropout if training else 0.0
    return run_gru(input, weights, hx, sizes, probability, batch_first, options)


@overload
def lstm(
    input: Tensor,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    lengths: Lengths = ...,
    resets: Tensor | None = ...,
    reset_hx: tuple[Tensor, Tensor] | None = ...,
    output_hidden_states: Literal[False] = ...,
    recompute: bool = ...,
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...


@overload
def lstm(
    input: PackedSequence,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    output_hidden_states: Literal[False] = ...,
    recompute: bool = ...,
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...


@overload
def lstm(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = ...,
    *,
    bidirectional: bool = ...,
    dropout: float = ...,
    training: bool = ...,
    batch_first: bool = ...,
    lengths: Lengths = ...,
    resets: Tensor | None = ...,
    reset_hx: tuple[Tensor, Tensor] | None = ...,
    output_hidden_states: bool,
    recompute: bool = ...,
) -> tuple[Any, ...]: ...


def lstm(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Lengths = None,
    resets: Tensor | None = None,
    reset_hx: tuple[Tensor, Tensor] | None = None,
    output_hidden_states: bool = False,
    recompute: bool = False,
) -> tuple[Any, ...]:
    """Run a stack of LSTM layers over a sequence; the function under :class:`gatedrnn.LSTM`.

    Args:
        input: (T, B, I); (B, T, I) if batch_first; (T, I) without a batch; or a PackedSequence.
        weights: the tensors of ``torch.nn.LSTM(...).parameters()`` in that order: per layer, then
            per direction, w_ih (4H, I for the first layer, D*P after), w_hh (4H, P), b_ih (4H) and
            b_hh (4H) or no bias at all, and w_hr (P, H) if there is a projection (P < H).
            L follows from their number.
        hx: initial states (h_0, c_0), of shapes (L*D, B, P) and (L*D, B, H), or without the B;
            zeros if None. For a PackedSequence their rows are in the caller's order.
        bidirectional: whether each layer has a second direction that runs backwards in time.
        dropout: probability of zeroing an element of what one layer hands to the next.
        training: whether dropout is active.
        batch_first: whether the first two dimensions of a 3-D input, and of the output, are (B, T).
        lengths, resets, reset_hx, output_hidden_states, recompute: as :class:`gatedrnn.LSTM` takes
            them; with output_hidden_states there is a third result.

    Returns:
        The output (T, B, D*P), laid out and packed as the input was, and the final states
        (h_n, c_n), laid out as hx; all in the input's dtype (under autocast: the autocast dtype).

    Raises:
        TypeError: hx is not a pair.
        ValueError, RuntimeError: as for :func:`gru`.

    Example::

        >>> m = torch.nn.LSTM(10, 20, num_layers=2)
        >>> y, (hn, cn) = gatedrnn.functional.lstm(torch.randn(5, 3, 10), list(m.parameters()))
        >>> y.shape, cn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """
    sizes = checks.sizes_of("LSTM", weights, 2 if bidirectional else 1)
    options = chosen(lengths, resets, reset_hx, output_hidden_states, recompute)
    probability = dropout if training else 0.0
    return run_lstm(input, weights, hx, sizes, probability, batch_first, options)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step; the function under :class:`gatedrnn.GRUCell`.

    Args:
        input: (B, I) or (I,).
        hx: the state (B, H) or (H,), as the input; zeros if None.
        w_ih, w_hh, b_ih, b_hh: (3H, I), (3H, H), (3H,), (3H,); the biases may be None.

    Returns:
        The next state (B, H) or (H,), in the input's dtype (under autocast: the autocast dtype).

    Raises:
        ValueError: input or state is neither 1-D nor 2-D.
        RuntimeError: sizes, dtypes or devices do not fit together.

    Example::

        >>> c = torch.nn.GRUCell(10, 20)
        >>> gatedrnn.functional.gru_cell(torch.randn(3, 10), None, *c.parameters()).shape
        torch.Size([3, 20])
    """
    if hx is not None and not torch.compiler.is_dynamo_compiling():
        step = ops.step("gru_cell", input, hx, None, w_ih, w_hh, b_ih, b_hh)
        if step is not None:
            return step[0]
    if (
        hx is not None
        and checks.step_fits(3, input, hx, None, w_ih, w_hh, b_ih, b_hh)
        and not _any_autocast()
    ):
        return ops.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    states = None if hx is None else (hx,)
    return _run_cell("GRUCell", ops.gru_cell, input, states, w_ih, w_hh, b_ih, b_hh)[0]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step; the function under :class:`gatedrnn.LSTMCell`.

    Args:
        input: (B, I) or (I,).
        hx: the states (h, c), (B, H) or (H,) each, as the input; zeros if None.
        w_ih, w_hh, b_ih, b_hh: (4H, I), (4H, H), (4H,), (4H,); the biases may be None.

    Returns:
        The next states (h', c'), in the input's dtype (under autocast: the autocast dtype).

    Raises:
        TypeError: hx is not a pair.
        ValueError: input or a state is neither 1-D nor 2-D.
        RuntimeError: sizes, dtypes or devices do not fit together.

    Example::

        >>> c = torch.nn.LSTMCell(10, 20)
        >>> h, c = gatedrnn.functional.lstm_cell(torch.randn(3, 10), None, *c.parameters())
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """
    if type(hx) is tuple and len(hx) == 2 and not torch.compiler.is_dynamo_compiling():
        h, c = hx
        step = ops.step("lstm_cell", input, h, c, w_ih, w_hh, b_ih, b_hh)
        if step is not None:
            return step  # type: ignore[return-value]
    states = None if hx is None else checks.pair("LSTMCell", hx)
    if (
        states is not None
        and checks.step_fits(4, input, *states, w_ih, w_hh, b_ih, b_hh)
        and not _any_autocast()
    ):
        return ops.lstm_cell(input, *states, w_ih, w_hh, b_ih, b_hh)
    h, c = _run_cell("LSTMCell", ops.lstm_cell, input, states, w_ih, w_hh, b_ih, b_hh)
    return h, c


def _autocast_dtype(
    x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor | None]
) -> torch.dtype | None:
    """The dtype to compute in where autocast, on for some device, applies to these tensors."""
    device = x.device.type
    # is_autocast_enabled raises for a device that has no autocast, such as meta.
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    tensors = (x, *(states or ()), *weights)
    if any(t is not None and t.dtype not in _AUTOCAST_DTYPES for t in tensors):
        return None
    return torch.get_autocast_dtype(device)


def run_gru(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: Tensor | None,
    sizes: checks.Sizes,
    dropout: float,
    batch_first: bool,
    options: Options = PLAIN,
) -> tuple[Any, ...]:
    """gru() of known sizes, for a module that declares them; `dropout` is what is to be applied."""
    states = None if hx is None else (hx,)
    layer = ops.gru_layer if options is PLAIN else variants.layer("GRU", options)
    y, finals, sequences = _run(
        "GRU", layer, input, weights, states, sizes, dropout, batch_first, options
    )
    if sequences is None:
        return y, finals[0]
    return y, finals[0], sequences[0]


def run_lstm(
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None,
    sizes: checks.Sizes,
    dropout: float,
    batch_first: bool,
    options: Options = PLAIN,
) -> tuple[Any, ...]:
    """lstm() of known sizes, for a module that declares them."""
    states = None if hx is None else checks.pair("LSTM", hx)
    layer = ops.lstm_layer if options is PLAIN else variants.layer("LSTM", options)
    y, finals, sequences = _run(
        "LSTM", layer, input, weights, states, sizes, dropout, batch_first, options
    )
    if sequences is None:
        return y, (finals[0], finals[1])
    return y, (finals[0], finals[1]), (sequences[0], sequences[1])


def _run(
    name: str,
    layer: Callable[..., tuple[Tensor, ...]],
    input: Tensor | PackedSequence,
    weights: Sequence[Tensor],
    states: tuple[Tensor, ...] | None,
    sizes: checks.Sizes,
    dropout: float,
    batch_first: bool,
    options: Options,
) -> tuple[Any, tuple[Tensor, ...], tuple[Any, ...] | None]:
    """Check, bring everything into time-major order, run the layers, and undo the order.

    The third result is what the options ask for of the states between the first and the last.
    """
    packed = unbatched = False
    batch_sizes = order = inverse = rows = None
    if options.is_ragged:
        rows = ragged.arrange(name, input, states, options, batch_first)
        x, batch_sizes, batch = rows.x, rows.batch_sizes, rows.batch
        layer = rows.layer(layer)
    elif isinstance(input, PackedSequence):
        packed = True
        x, batch_sizes, order, inverse = input
        batch = checks.packed_batch(x, batch_sizes, order, inverse, states)
    elif input.dim() == 3 and not input.is_nested:
        x = input.transpose(0, 1) if batch_first else input
        batch = x.shape[1]
    else:
        checks.check_dims(name, input, states)
        unbatched = True
        x, batch = input.unsqueeze(1), 1
        states = states and tuple(s.unsqueeze(1) for s in states)

    dtype = None
    if _any_autocast():
        dtype = _autocast_dtype(x, states, weights)
    if dtype is not None:
        x = x.to(dtype)
        states = states and tuple(s.to(dtype) for s in states)
        weights = [w.to(dtype) for w in weights]
    if not checks.fit(x, weights, states, sizes, batch):
        if not packed and rows is None:
            checks.check_dims(name, x, states)
        checks.check_tensors(name, x, weights, states, sizes, batch)
    if x.shape[0] == 0 and not packed:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if states is None:
        # Two tensors for an LSTM even where one would do: Dynamo refuses an input given twice.
        shape = sizes.layers * sizes.directions, batch
        states = tuple(
            [torch.zeros(*shape, w, dtype=x.dtype, device=x.device) for w in sizes.widths]
        )
    elif order is not None:
        states = tuple(s.index_select(1, order) for s in states)
    if rows is not None:
        states = rows.initial(name, states, sizes.directions, options.reset_hx, dtype)

    kept: list[tuple[Tensor, ...]] | None = [] if options.output_hidden_states else None
    if dtype is None:
        y, finals = _stack(layer, x, states, weights, batch_sizes, sizes, dropout, kept)
    else:  # applied by hand above, not to be applied again inside
        with torch.autocast(x.device.type, enabled=False):
            y, finals = _stack(layer, x, states, weights, batch_sizes, sizes, dropout, kept)
    if rows is None and (name == "GRU" or sizes.directions == 2):
        # The backward reads y, but torch.nn lets these outputs be changed in place; not on CUDA.
        if (y.requires_grad or traced.is_recording()) and not y.is_cuda:
            y = y.clone()

    def laid_out(y: Tensor) -> Any:
        if rows is not None:
            return rows.restore(y)
        if packed:
            return PackedSequence(y, batch_sizes, order, inverse)
        if unbatched:
            return y.squeeze(1)
        return y.transpose(0, 1) if batch_first else y

    if rows is not None:
        finals = rows.finals(finals, sizes.directions)
    elif inverse is not None:
        finals = tuple(s.index_select(1, inverse) for s in finals)
    elif unbatched:
        finals = tuple(s.squeeze(1) for s in finals)
    output = laid_out(y)
    if kept is None:
        return output, finals, None
    h, *c = zip(*kept, strict=True)
    hidden = (*map(laid_out, h[:-1]), output)
    return output, finals, (hidden, *(tuple(map(laid_out, s)) for s in c))


def _stack(
    layer: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    sizes: checks.Sizes,
    dropout: float,
    kept: list[tuple[Tensor, ...]] | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the layers one after the other, with dropout between them, on time-major tensors; or all
    at the same time, where a GPU's plan wants that.

    To `kept` are added each layer's states of all steps: what it gives out, and what beyond its
    final states.
    """
    slots = (*weights, None)
    beyond = 1 + len(states)
    if sizes.layers == 1:
        results = layer(x, *states, sizes.groups[0](slots), batch_sizes)
        if kept is not None:
            kept.append((results[0], *results[beyond:]))
        return results[0], results[1:beyond]
    special = dropout != 0 or kept is not None or batch_sizes is not None
    if raw.on_gpu(x) and not special and _is_plain(layer, sizes):
        kernel = "gru" if layer is ops.gru_layer else "lstm"
        together = ops.stack(kernel, x, states, [group(slots) for group in sizes.groups])
        if together is not None:
            every = zip(*(results[1:] for results in together), strict=True)
            return together[-1][0], tuple(torch.cat(parts) for parts in every)
    y = x
    finals: list[tuple[Tensor, ...]] = []
    initial = zip(*(s.split(sizes.directions) for s in states), strict=True)
    for group, states_in in zip(sizes.groups, initial, strict=True):
        # torch's CPU masks: one draw per inner layer, over its time-major or packed output.
        if finals and dropout != 0:
            y = torch.dropout(y, dropout, True)
        results = layer(y, *states_in, group(slots), batch_sizes)
        y = results[0]
        finals.append(results[1:beyond])
        if kept is not None:
            kept.append((y, *results[beyond:]))
    return y, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def _is_plain(layer: Callable[..., tuple[Tensor, ...]], sizes: checks.Sizes) -> bool:
    one_way = sizes.directions == 1 and sizes.output == sizes.hidden
    return one_way and (layer is ops.gru_layer or layer is ops.lstm_layer)


def _run_cell(
    name: str,
    cell: Callable[..., Any],
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    """Check one step of a cell, give it a batch if it has none, and run it."""
    dtype = None
    if _any_autocast():
        dtype = _autocast_dtype(input, states, (w_ih, w_hh, b_ih, b_hh))
    if dtype is not None:
        input = input.to(dtype)
        states = states and tuple(s.to(dtype) for s in states)
        w_ih, w_hh = w_ih.to(dtype), w_hh.to(dtype)
        b_ih = None if b_ih is None else b_ih.to(dtype)
        b_hh = None if b_hh is None else b_hh.to(dtype)
    checks.check_cell(name, input, states, w_ih, w_hh, b_ih, b_hh)
    unbatched = input.dim() == 1
    x = input.unsqueeze(0) if unbatched else input
    if states is None:
        shape = x.size(0), w_hh.size(1)
        count = 1 if name == "GRUCell" else 2  # two tensors: Dynamo refuses an input given twice
        states = tuple(torch.zeros(shape, dtype=x.dtype, device=x.device) for _ in range(count))
    elif unbatched:
        states = tuple(s.unsqueeze(0) for s in states)
    if dtype is None:
        result = cell(x, *states, w_ih, w_hh, b_ih, b_hh)
    else:  # applied by hand above, not to be applied again inside
        with torch.autocast(x.device.type, enabled=False):
            result = cell(x, *states, w_ih, w_hh, b_ih, b_hh)
    after = (result,) if name == "GRUCell" else result
    return tuple(s.squeeze(0) for s in after) if unbatched else after
