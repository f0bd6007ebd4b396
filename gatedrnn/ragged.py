"""Sequences of several lengths in one padded tensor, and sequences that restart in the middle.

A row of the batch ends where `lengths` says, and begins anew, from its initial state, wherever
`resets` says. What lies between two such places is a segment, and segments do not know of each
other. There are two ways to compute them:

- Packed: where the values of `lengths` and `resets` can be read on the host, the steps of all
  segments are gathered, longest segment first, into the layout of a PackedSequence. The kernels
  then do no more than the steps there are, and what comes out is scattered back.
- Masked: where the values cannot be read without waiting (lengths on a GPU) or do not exist yet (a
  tracer's), the input is made zero beyond the ends. On a GPU the persistent kernels read lengths
  themselves, and walk each row to its end; elsewhere every row runs over all T steps, the reverse
  direction over the row turned around, and the states are taken from where the row ends. Resets
  have no such form.

The sizes are those of functional.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import checks, raw, traced
from .options import Options

__all__ = ["Masked", "Packed", "arrange"]

_Layer = Callable[..., tuple[Tensor, ...]]
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def arrange(
    name: str,
    input: Tensor | PackedSequence,
    states: tuple[Tensor, ...] | None,
    options: Options,
    batch_first: bool,
) -> "Packed | Masked":
    """Check lengths and resets against the input, and choose the way.

    Raises:
        TypeError: lengths or resets are no tensor of the right kind of numbers.
        ValueError: their shape does not fit the input, a length is not in 1 .. T, the input is a
            PackedSequence or has no batch, or there is a reset_hx without resets.
        RuntimeError: there are resets whose values cannot be read here.
    """
    resets = options.resets
    if isinstance(input, PackedSequence) or input.dim() == 2:
        kind = "a PackedSequence" if isinstance(input, PackedSequence) else "2-D, without a batch"
        raise ValueError(
            f"{name}: lengths and resets need a padded 3-D input, got one that is {kind}"
        )
    if resets is None and options.reset_hx is not None:
        raise ValueError(f"{name}: reset_hx is the state that resets begin from: there are none")
    checks.check_dims(name, input, states)
    batch, steps = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    ends = _lengths(name, options.lengths, batch, steps)
    if resets is not None:
        _check_resets(name, resets, (batch, steps) if batch_first else (steps, batch))
    if batch == 0:
        return Masked(input, ends.to(input.device), batch_first)
    if resets is not None:
        if not _is_readable(resets) or not _is_readable(ends):
            raise RuntimeError(
                f"{name}: resets are looked up on the host, and their values, or those of "
                "lengths, cannot be read here: under torch.compile(fullgraph=True), torch.export "
                "or torch.func.vmap give lengths alone"
            )
    elif not _is_readable(ends) or (ends.is_cuda and input.is_cuda):
        return Masked(input, ends.to(input.device), batch_first)
    ends = ends.cpu()
    _check_lengths(name, ends, steps)
    marks = None
    if resets is not None:
        marks = (resets if batch_first else resets.transpose(0, 1)).cpu()
    return Packed(input, ends, marks, batch_first)


def _restarts(
    name: str, reset_hx: Any, states: tuple[Tensor, ...], dtype: torch.dtype | None
) -> tuple[Tensor, ...]:
    """reset_hx as a tuple, which must be like the initial states; autocast is to `dtype`."""
    again: tuple[Tensor, ...] = (reset_hx,)
    if len(states) == 2:
        again = checks.pair(name, reset_hx)
    if dtype is not None:
        again = tuple(s.to(dtype) for s in again)
    for k, (s, like) in enumerate(zip(again, states, strict=True)):
        if s.shape != like.shape or s.dtype != like.dtype or s.device != like.device:
            label = "reset_hx" if len(states) == 1 else f"reset_hx[{k}]"
            raise RuntimeError(
                f"{name}: expected {label} to be as hx, {tuple(like.shape)} of {like.dtype} on "
                f"{like.device}, got {tuple(s.shape)} of {s.dtype} on {s.device}"
            )
    return again


def _lengths(
    name: str, lengths: Tensor | Sequence[int] | None, batch: int, steps: int
) -> Tensor:
    """The lengths as int64, of the right shape; their values are not looked at."""
    if lengths is None:
        return torch.full((batch,), steps)
    if not isinstance(lengths, Tensor):
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in lengths):
            raise TypeError(f"{name}: expected lengths to be a tensor of integers, got {lengths!r}")
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected lengths to be integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"{name}: expected lengths of shape ({batch},), one for each sequence, "
            f"got {tuple(lengths.shape)}"
        )
    return lengths.to(torch.int64)


def _check_lengths(name: str, lengths: Tensor, steps: int) -> None:
    bad = ((lengths < 1) | (lengths > steps)).nonzero()
    if len(bad):
        k = int(bad[0])
        raise ValueError(
            f"{name}: expected lengths from 1 to {steps}, the number of steps, "
            f"got {int(lengths[k])} for sequence {k}"
        )


def _check_resets(name: str, resets: Any, shape: tuple[int, int]) -> None:
    if not isinstance(resets, Tensor) or resets.dtype != torch.bool:
        got = resets.dtype if isinstance(resets, Tensor) else type(resets).__name__
        raise TypeError(f"{name}: expected resets to be a boolean tensor, got {got}")
    if resets.shape != shape:
        raise ValueError(
            f"{name}: expected resets of shape {shape}, as the input's first two, "
            f"got {tuple(resets.shape)}"
        )


def _is_readable(values: Tensor) -> bool:
    if torch.compiler.is_compiling() or traced.is_recording() or values.is_meta:
        return False
    return not torch._C._functorch.is_batchedtensor(values)


class _Rows(torch.autograd.Function):
    """Rows of a matrix, and zeros where `rows` names the one after its last.

    No row is asked for twice, so that the gradient is such a selection too, by `back`, which says
    of each row where it went. What autograd makes of its own index_select adds up row by row.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rows: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(rows, back)
        if len(rows) <= len(back):  # every one of them is there
            return matrix.index_select(0, rows)
        return torch.cat((matrix, matrix.new_zeros(1, matrix.size(1)))).index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, back = ctx.saved_tensors
        return _Rows.apply(gradient, back, rows), None, None


class _Segments(NamedTuple):
    """The segments, longest first. S of them, N steps in all."""

    rows: Tensor  # (N,) of the flat input, in packed order,
    places: Tensor  # (T * B,) and where each of those is then, or N
    batch_sizes: Tensor  # (longest,)
    owner: Tensor  # (S,) the row of the batch,
    after_reset: Tensor  # (S,) whether a reset began it,
    before_reset: Tensor  # (S,) and whether one ended it
    first: Tensor  # (B,) the place of each row's first segment,
    last: Tensor  # (B,) and of its last


def _segments(
    lengths: Tensor, resets: Tensor | None, flat: int, step: int, row: int
) -> _Segments:
    """Cut the rows: lengths (B,), resets (B, T). Step t of row b is row b * row + t * step of the
    `flat` ones of the input."""
    if resets is None:
        owner, start, size = torch.arange(len(lengths)), torch.zeros_like(lengths), lengths
        begins = ends = torch.ones_like(lengths, dtype=torch.bool)
        after_reset = ~begins
    else:
        times = torch.arange(resets.size(1))
        marks = (resets | (times == 0)) & (times < lengths.unsqueeze(1))
        owner, start = marks.nonzero(as_tuple=True)
        begins = start == 0
        ends = begins.roll(-1)
        size = torch.where(ends, lengths[owner], start.roll(-1)) - start
        after_reset = resets[owner, start]
    count = len(owner)
    order = size.argsort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(count))
    batch_sizes = count - size.bincount().cumsum(0)[:-1]
    times = torch.arange(len(batch_sizes)).repeat_interleave(batch_sizes)
    before = batch_sizes.cumsum(0) - batch_sizes
    segment = order[torch.arange(len(times)) - before[times]]
    rows = (owner * row + start * step)[segment] + times * step
    places = torch.full((flat,), len(rows)).index_copy_(0, rows, torch.arange(len(rows)))
    return _Segments(
        rows,
        places,
        batch_sizes,
        owner[order],
        after_reset[order],
        ~ends[order],
        place[begins],
        place[ends],
    )


class Packed:
    """All segments in the layout of a PackedSequence."""

    def __init__(
        self, input: Tensor, lengths: Tensor, resets: Tensor | None, batch_first: bool
    ) -> None:
        rows = input if batch_first else input.transpose(0, 1)
        self.batch, self.steps = rows.shape[:2]
        self._batch_first = batch_first
        # Whichever way the input lies, it is not copied, and the output lies as it does.
        self._rows_first = rows.is_contiguous()
        step, row = (1, self.steps) if self._rows_first else (self.batch, 1)
        found = _segments(lengths, resets, self.batch * self.steps, step, row)
        self.batch_sizes = found.batch_sizes
        self._found = _Segments(*(t.to(input.device) for t in found))
        matrix = (rows if self._rows_first else rows.transpose(0, 1)).reshape(-1, input.size(-1))
        self.x = self._take(matrix)

    def layer(self, layer: _Layer) -> _Layer:
        return layer

    def initial(
        self,
        name: str,
        states: tuple[Tensor, ...],
        directions: int,
        reset_hx: Any,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, ...]:
        """Each segment's initial states (L*D, S, .), from those of the rows (L*D, B, .)."""
        found = self._found
        if reset_hx is None:
            return tuple(s.index_select(1, found.owner) for s in states)
        again = _restarts(name, reset_hx, states, dtype)
        either = (torch.cat(pair, 1) for pair in zip(states, again, strict=True))
        ahead = found.owner + self.batch * found.after_reset
        back = found.owner + self.batch * found.before_reset
        return tuple(_select(s, directions, ahead, back) for s in either)

    def restore(self, y: Tensor) -> Tensor:
        """Packed results (N, .) to where their input stood; zero elsewhere."""
        matrix = self._put(y)
        if self._rows_first:
            rows = matrix.view(self.batch, self.steps, -1)
            return rows if self._batch_first else rows.transpose(0, 1)
        times = matrix.view(self.steps, self.batch, -1)
        return times.transpose(0, 1) if self._batch_first else times

    def finals(self, states: tuple[Tensor, ...], directions: int) -> tuple[Tensor, ...]:
        """Of all segments' final states (L*D, S, .) each row's, where the direction leaves it."""
        last, first = self._found.last, self._found.first
        return tuple(_select(s, directions, last, first) for s in states)

    def _take(self, matrix: Tensor) -> Tensor:
        if _is_transformed():
            return matrix.index_select(0, self._found.rows)
        return _Rows.apply(matrix, self._found.rows, self._found.places)

    def _put(self, y: Tensor) -> Tensor:
        if _is_transformed():
            count = self.batch * self.steps
            return y.new_zeros(count, y.size(1)).index_copy(0, self._found.rows, y)
        return _Rows.apply(y, self._found.places, self._found.rows)


def _select(states: Tensor, directions: int, ahead: Tensor, back: Tensor) -> Tensor:
    """Columns of states (L*D, ., .), for the second direction others than for the first."""
    if directions == 1:
        return states.index_select(1, ahead)
    sides = states.unflatten(0, (-1, 2)).unbind(1)
    found = (s.index_select(1, k) for s, k in zip(sides, (ahead, back), strict=True))
    return torch.stack(tuple(found), 1).flatten(0, 1)


def _is_transformed() -> bool:
    """Whether somebody asks for derivatives in another way than autograd's backward."""
    dual = torch.autograd.forward_ad._current_level >= 0
    return dual or torch._C._are_functorch_transforms_active()


class Masked:
    """Every row over all T steps; or, where the kernels can, until its end."""

    batch_sizes = None

    def __init__(self, input: Tensor, lengths: Tensor, batch_first: bool) -> None:
        x = input.transpose(0, 1) if batch_first else input
        steps, self.batch = x.shape[:2]
        self._batch_first = batch_first
        # Nobody can say what is wrong with lengths that nobody can read.
        self._lengths = lengths = lengths.clamp(1, steps)
        self._times = torch.arange(steps, device=input.device).view(-1, 1, 1)
        self._inside = self._times < lengths.unsqueeze(1)  # (T, B, 1)
        self._end = (lengths - 1).view(1, -1, 1)
        self.x = self._cut(x)

    def layer(self, layer: _Layer) -> _Layer:
        """The same layer on rows of these lengths."""

        def masked(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            *states, weights, _ = rest
            if self._stays_on_gpu() and raw.takes_lengths(x, states):
                return layer(x, *states, weights, None, lengths=self._lengths)
            directions = states[0].size(0)
            each = len(weights) // directions
            found = []
            for d in range(directions):
                own = list(weights[d * each : (d + 1) * each])
                initial = [s[d : d + 1] for s in states]
                found.append(self._direction(layer, x, initial, own, turned=d == 1))
            if directions == 1:
                return found[0]
            parts = zip(*found, strict=True)
            last = len(states)
            return tuple(
                torch.cat(p, 0 if 1 <= k <= last else -1) for k, p in enumerate(parts)
            )

        return masked

    def _stays_on_gpu(self) -> bool:
        """Whether the ops see the tensors themselves, and the lengths are where the kernels are."""
        if torch.compiler.is_compiling() or traced.is_recording():
            return False
        return not torch._C._are_functorch_transforms_active()

    def initial(self, name: str, states: tuple[Tensor, ...], *unused: Any) -> tuple[Tensor, ...]:
        return states

    def restore(self, y: Tensor) -> Tensor:
        return y.transpose(0, 1) if self._batch_first else y

    def finals(self, states: tuple[Tensor, ...], directions: int) -> tuple[Tensor, ...]:
        return states

    def _direction(
        self,
        layer: _Layer,
        x: Tensor,
        states: list[Tensor],
        weights: list[Tensor | None],
        turned: bool,
    ) -> tuple[Tensor, ...]:
        x = self._turn(x) if turned else x
        if len(states) == 2:
            x, weights[0] = self._hold(x, weights[0])
        y, _, *rest = layer(x, *states, weights, None)
        hn = y.gather(0, self._end.expand(1, -1, y.size(2)))
        sequences = [self._cut(s) for s in (y, *rest[len(states) - 1 :])]
        if turned:
            sequences = [self._turn(s) for s in sequences]
        return sequences[0], hn, *rest[: len(states) - 1], *sequences[1:]

    def _hold(self, x: Tensor, w_ih: Any) -> tuple[Tensor, Tensor]:
        """One more input that is 1 beyond a row's end, and there shuts the input gate and opens the
        forget gate: the cell state is at the last step what it was at the row's own."""
        far = 2.0**15 if x.dtype == torch.float16 else 2.0**100
        hidden = w_ih.size(0) // 4
        column = torch.cat([w_ih.new_full((hidden,), v) for v in (-far, far, 0.0, 0.0)])
        beyond = torch.where(self._inside, 0.0, 1.0).to(x.dtype)
        return torch.cat((x, beyond), -1), torch.cat((w_ih, column.unsqueeze(1)), 1)

    def _cut(self, x: Tensor) -> Tensor:
        return torch.where(self._inside, x, x.new_zeros(()))

    def _turn(self, x: Tensor) -> Tensor:
        """A row turned around, which does the same to its padding as to itself: it stays."""
        turned = torch.where(self._inside, self._end - self._times, self._times)
        return x.gather(0, turned.expand(-1, -1, x.size(2)))
