"""The checks of functional.py: what fits together, and the sentence for what does not.

Types and texts are torch.nn's wherever it refuses the same thing. Sizes are named as in
functional.py. Nothing here reads a tensor's values, except the lengths of a PackedSequence.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

_GATES = {"GRU": 3, "LSTM": 4, "GRUCell": 3, "LSTMCell": 4}


class Sizes(NamedTuple):
    """What a network is, and what its flat list of weights must be."""

    features: int  # I
    hidden: int  # H
    output: int  # P
    layers: int
    directions: int
    widths: tuple[int, ...]  # of the states
    stems: tuple[str, ...]  # names of the weights of one layer and direction
    shapes: tuple[tuple[int, ...], ...]  # one for every weight
    # Per layer: (*weights, None) -> what ops takes, None for the weights that are not there.
    groups: tuple[Callable[[tuple[Tensor | None, ...]], tuple[Tensor | None, ...]], ...]


def sizes(
    name: str,
    features: int,
    hidden: int,
    projected: int,
    layers: int,
    directions: int,
    bias: bool,
) -> Sizes:
    """The Sizes of a GRU or an LSTM; `projected` is P where there is a projection, and 0 else."""
    # Needed at every call, so it is kept; a compiler would trace into the cache, and warns.
    make = _make_sizes if torch.compiler.is_compiling() else _kept_sizes
    return make(name, features, hidden, projected, layers, directions, bias)


def _make_sizes(
    name: str,
    features: int,
    hidden: int,
    projected: int,
    layers: int,
    directions: int,
    bias: bool,
) -> Sizes:
    output = projected or hidden
    rows = _GATES[name] * hidden
    slots: list[tuple[str, tuple[int, ...]] | None] = [
        ("weight_ih", (rows, features)),
        ("weight_hh", (rows, output)),
        ("bias_ih", (rows,)) if bias else None,
        ("bias_hh", (rows,)) if bias else None,
    ]
    if name == "LSTM":
        slots.append(("weight_hr", (output, hidden)) if projected else None)
    present = [s for s in slots if s is not None]
    group = tuple(shape for _, shape in present)
    above = ((rows, directions * output), *group[1:])
    places = [present.index(s) if s is not None else -1 for s in slots]
    each = len(group)
    return Sizes(
        features,
        hidden,
        output,
        layers,
        directions,
        (output,) if name == "GRU" else (output, hidden),
        tuple(stem for stem, _ in present),
        directions * group + (layers - 1) * directions * above,
        tuple(
            itemgetter(
                *(
                    p if p < 0 else p + each * (layer * directions + d)
                    for d in range(directions)
                    for p in places
                )
            )
            for layer in range(layers)
        ),
    )


_kept_sizes = lru_cache(maxsize=256)(_make_sizes)


def pair(name: str, hx: Any) -> tuple[Tensor, Tensor]:
    """The two states of an LSTM; TypeError if hx is anything else, a stacked tensor included."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"{len(hx)} items" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"{name}: expected hx to be a tuple of two tensors (h, c), got {got}")
    return hx[0], hx[1]


def sizes_of(name: str, weights: Sequence[Tensor], directions: int) -> Sizes:
    """Read the sizes of the network off its flat list of weights."""
    count = len(weights)
    if count < 2 or weights[0].dim() != 2 or weights[1].dim() != 2:
        raise RuntimeError(
            f"{name}: expected weights to begin with two matrices, w_ih and w_hh, got shapes "
            f"{[tuple(w.shape) for w in weights[:2]]}"
        )
    rows, features = weights[0].shape
    hidden, output = rows // _GATES[name], weights[1].size(1)
    bias = count > 2 and weights[2].dim() == 1
    projected = output if name == "LSTM" and output != hidden else 0
    one = sizes(name, features, hidden, projected, 1, 1, bias).shapes
    layers, rest = divmod(count, directions * len(one))
    if rest:
        raise RuntimeError(
            f"{name}: expected {len(one)} weights for each layer and direction, of shapes "
            f"{list(one)} in the first layer, got {count} weights for {directions} direction(s)"
        )
    return sizes(name, features, hidden, projected, layers, directions, bias)


def check_dims(name: str, input: Tensor, states: tuple[Tensor, ...] | None) -> None:
    """The ranks of a padded input and its initial states."""
    dim = input.dim()
    if dim not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {dim}D instead")
    if input.is_nested:
        raise ValueError(
            f"{name}: nested tensors are not supported; pack the sequences with "
            "torch.nn.utils.rnn.pack_sequence(..., enforce_sorted=False)"
        )
    if states is None or all(s.dim() == dim for s in states):
        return
    kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
    if len(states) == 1:
        raise RuntimeError(
            f"For {kind} input, hx should also be {dim}-D but got {states[0].dim()}-D tensor"
        )
    raise RuntimeError(
        f"For {kind} input, hx and cx should also be {dim}-D "
        f"but got ({states[0].dim()}-D, {states[1].dim()}-D) tensors"
    )


def packed_batch(
    data: Tensor,
    batch_sizes: Tensor,
    sorted_indices: Tensor | None,
    unsorted_indices: Tensor | None,
    states: tuple[Tensor, ...] | None,
) -> int:
    """Check the parts of a PackedSequence against each other; returns B."""
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    if (
        batch_sizes.dtype != torch.int64
        or batch_sizes.dim() != 1
        or batch_sizes.device.type != "cpu"
    ):
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "torch.export cannot record pack_padded_sequence, whose batch_sizes it takes for "
                f"{batch_sizes.dtype}: export a model that takes a PackedSequence or padded input"
            )
        raise RuntimeError(
            "PackedSequence: expected batch_sizes to be a 1-D int64 tensor on the CPU, got "
            f"{batch_sizes.dim()}-D {batch_sizes.dtype} on {batch_sizes.device}"
        )
    if torch.compiler.is_compiling():
        # A traced graph knows sizes, not values: the op checks those when it runs.
        if sorted_indices is not None:
            return sorted_indices.size(0)
        if states is None:
            first: Any = batch_sizes[0].item()  # int() would ask for the value at once
            return first
        return states[0].size(1)
    steps: list[int] = batch_sizes.tolist()
    if not steps or steps[-1] <= 0 or any(a < b for a, b in pairwise(steps)):
        raise RuntimeError(
            "PackedSequence: expected batch_sizes to be positive, non-increasing and not empty, "
            f"got {steps if len(steps) <= 10 else [*steps[:10], '...']}"
        )
    if sum(steps) != data.size(0):
        raise RuntimeError(
            f"PackedSequence: expected as many rows of data as batch_sizes adds up to, "
            f"{sum(steps)}, got {data.size(0)} (were some lengths greater than the padded length?)"
        )
    for label, indices in ("sorted", sorted_indices), ("unsorted", unsorted_indices):
        if indices is not None and indices.shape != (steps[0],):
            raise RuntimeError(
                f"PackedSequence: expected {label}_indices to have shape ({steps[0]},), "
                f"got {tuple(indices.shape)}"
            )
    return steps[0]


def fit(
    x: Tensor,
    weights: Sequence[Tensor],
    states: tuple[Tensor, ...] | None,
    sizes: Sizes,
    batch: int,
) -> bool:
    """Whether check_tensors has nothing to refuse, found out at the least cost."""
    dtype, device = x.dtype, x.device
    if x.shape[-1] != sizes.features or len(weights) != len(sizes.shapes):
        return False
    for w, shape in zip(weights, sizes.shapes):  # noqa: B905 (strict takes time)
        if w is None or w.shape != shape or w.dtype is not dtype or w.device != device:
            return False
    if states is not None:
        rows = sizes.layers * sizes.directions
        for s, width in zip(states, sizes.widths):  # noqa: B905
            if s.dim() != 3 or s.shape != (rows, batch, width):
                return False
            if s.dtype is not dtype or s.device != device:
                return False
    return True


def check_tensors(
    name: str,
    x: Tensor,
    weights: Sequence[Tensor],
    states: tuple[Tensor, ...] | None,
    sizes: Sizes,
    batch: int,
) -> None:
    """Sizes, dtypes and devices of x (.., I), the initial states (L*D, B, .) and the weights."""
    if len(weights) != len(sizes.shapes):
        raise RuntimeError(f"{name}: expected {len(sizes.shapes)} weights, got {len(weights)}")
    for k, w in enumerate(weights):
        if w is None:
            raise AttributeError(f"{name}: {weight_name(sizes, k)} is None, not a tensor")
    dtype, device = x.dtype, x.device
    if dtype != weights[0].dtype:
        raise ValueError(
            f"RNN input dtype ({dtype}) does not match weight dtype ({weights[0].dtype}). Convert "
            f"input: input.to({weights[0].dtype}), or convert model: model.to({dtype})"
        )
    if x.size(-1) != sizes.features:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {sizes.features}, got {x.size(-1)}"
        )
    if states is not None:
        rows = sizes.layers * sizes.directions
        for k, state in enumerate(states):
            expected = (rows, batch, sizes.widths[k])
            if state.shape != expected:
                label = "hidden" if len(states) == 1 else f"hidden[{k}]"
                raise RuntimeError(f"Expected {label} size {expected}, got {list(state.shape)}")
        for k, state in enumerate(states):
            if state.device != device:
                _refuse_device("hidden", device, state.device)
            if state.dtype != dtype:
                label = "hx" if len(states) == 1 else f"hx[{k}]"
                raise RuntimeError(
                    f"{name}: {label} dtype ({state.dtype}) does not match input dtype ({dtype})"
                )
    for k, (w, shape) in enumerate(zip(weights, sizes.shapes, strict=True)):
        if w.shape != shape or w.dtype != dtype or w.device != device:
            _refuse_weight(name, x, w, weight_name(sizes, k), shape)


def weight_name(sizes: Sizes, k: int) -> str:
    """The name that torch.nn's modules give to weight k of the flat list."""
    place, k = divmod(k, len(sizes.stems))
    layer, direction = divmod(place, sizes.directions)
    return f"{sizes.stems[k]}_l{layer}{'_reverse' if direction else ''}"


def _refuse_device(kind: str, ours: torch.device, theirs: torch.device) -> NoReturn:
    raise RuntimeError(
        f"Input and {kind} tensors are not at the same device, found input tensor at {ours} "
        f"and {kind} tensor at {theirs}"
    )


def _refuse_weight(name: str, x: Tensor, w: Tensor, label: str, shape: tuple[int, ...]) -> NoReturn:
    if w.device != x.device:
        _refuse_device("parameter", x.device, w.device)
    if w.dtype != x.dtype:
        raise RuntimeError(
            f"{name}: {label} dtype ({w.dtype}) does not match input dtype ({x.dtype})"
        )
    raise RuntimeError(f"{name}: expected {label} of shape {shape}, got {tuple(w.shape)}")


def step_fits(
    gates: int,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> bool:
    """Whether a step has a batch and check_cell nothing to refuse, found out quickly."""
    if x.dim() != 2 or h.dim() != 2:
        return False
    batch, features = x.shape
    hidden = h.shape[1]
    rows = gates * hidden
    dtype, device = x.dtype, x.device
    return (
        h.shape == (batch, hidden)
        and w_ih.shape == (rows, features)
        and w_hh.shape == (rows, hidden)
        and dtype is h.dtype is w_ih.dtype is w_hh.dtype
        and device == h.device == w_ih.device == w_hh.device
        and (
            b_ih.shape == b_hh.shape == (rows,)
            and dtype is b_ih.dtype is b_hh.dtype
            and device == b_ih.device == b_hh.device
            if b_ih is not None and b_hh is not None
            else b_ih is b_hh
        )
        and (
            c is None
            or (c.shape == (batch, hidden) and c.dtype is dtype and c.device == device)
        )
    )


def check_cell(
    name: str,
    input: Tensor,
    states: tuple[Tensor, ...] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> None:
    """Ranks, sizes, dtypes and devices of one step of a cell."""
    dim = input.dim()
    if dim not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dim}D instead")
    states = states or ()
    labels = ("hx[0]", "hx[1]") if len(states) == 2 else ("hidden",)
    for k, state in enumerate(states):
        if state.dim() not in (1, 2):
            raise ValueError(
                f"{name}: Expected {labels[k]} to be 1D or 2D, got {state.dim()}D instead"
            )
    features, hidden = w_ih.size(-1), w_hh.size(-1)
    if input.size(-1) != features:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {features}"
        )
    for k, state in enumerate(states):
        if state.dim() != dim:
            raise RuntimeError(
                f"{name}: expected {labels[k]} to be {dim}D as the input is, got {state.dim()}D"
            )
        if dim == 2 and state.size(0) != input.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{k} "
                f"batch size {state.size(0)}"
            )
        if state.size(-1) != hidden:
            raise RuntimeError(
                f"hidden{k} has inconsistent hidden_size: got {state.size(-1)}, expected {hidden}"
            )
        if state.device != input.device:
            _refuse_device("hidden", input.device, state.device)
        if state.dtype != input.dtype:
            raise RuntimeError(
                f"{name}: {labels[k]} dtype ({state.dtype}) does not match "
                f"input dtype ({input.dtype})"
            )
    rows = _GATES[name] * hidden
    shapes: tuple[tuple[int, ...], ...] = ((rows, features), (rows, hidden), (rows,), (rows,))
    for k, w in enumerate((w_ih, w_hh, b_ih, b_hh)):
        if w is None:
            continue
        if w.shape != shapes[k] or w.dtype != input.dtype or w.device != input.device:
            label = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[k]
            _refuse_weight(name, input, w, label, shapes[k])
