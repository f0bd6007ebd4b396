"""The rules of vmap: which calls of kernels a call with a mapped axis of V samples becomes.

Where samples share the weights it is one call of V times the batch. Sample v of sequence b is
sequence b * V + v of that batch, so that packed sequences stay in their order. Where samples have
weights of their own, or want gradients of shared ones of their own, it is a call for each of them.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .raw import KERNELS, Call, Tensors

__all__ = ["backward", "batched_backward", "forward", "is_batched"]

_Dims = Sequence[int | None]
_Run = Callable[[Call, Sequence[Tensor | None]], Tensors]


def forward(
    run: _Run, call: Call, tensors: Tensors, dims: _Dims, size: int, train: bool
) -> tuple[Tensors, tuple[int | None, ...]]:
    """The results of a forward kernel, mapped, and their mapped dimensions.

    `dims` are those of `tensors`; what is kept for backward is empty unless `train`.
    """
    kernel = KERNELS[call.kernel]
    if _any(dims[1 + kernel.states :]):
        return _one_by_one(run, call, tensors, dims, size)
    rows, batch = _axes(call)
    axes = [rows] + [batch] * kernel.states
    inputs = (*_folded(tensors, dims, axes, size), *tensors[1 + kernel.states :])
    results = run(_larger(call, size), inputs)
    axes = _output_axes(call)
    axes += [rows] * (len(results) - len(axes))
    given = len(results) if train else kernel.outputs
    unfolded, places = _unfolded(results[:given], axes, size)
    return (*unfolded, *results[given:]), (*places, *[None] * (len(results) - given))


def backward(
    run: _Run,
    call: Call,
    tensors: Sequence[Tensor | None],
    dims: _Dims,
    size: int,
    needs: tuple[bool, bool],
) -> tuple[Tensors, tuple[int, ...]]:
    """The gradients of a backward kernel, mapped, and their mapped dimensions.

    `tensors` are what forward kept, the cotangents of its outputs, and its tensors; `needs` says
    whether there are gradients of x, and of the weights.
    """
    need_x, need_weights = needs
    kernel = KERNELS[call.kernel]
    first = len(kernel.kept) + kernel.outputs + 1 + kernel.states
    if need_weights or _any(dims[first:]):
        return _one_by_one(run, call, tensors, dims, size)
    rows, batch = _axes(call)
    axes = [rows] * len(kernel.kept) + _output_axes(call) + [rows] + [batch] * kernel.states
    inputs = (*_folded(tensors, dims, axes, size), *tensors[first:])
    results = run(_larger(call, size), inputs)
    return _unfolded(results, [rows] * need_x + [batch] * kernel.states, size)


def is_batched(t: Tensor | None) -> bool:
    """Whether torch.autograd itself maps over a cotangent: `is_grads_batched`, `vectorize`."""
    if t is None or torch.compiler.is_compiling():  # a compiler cannot trace the question
        return False
    return torch._C._functorch.is_legacy_batchedtensor(t)


def batched_backward(
    run: _Run, call: Call, tensors: Sequence[Tensor | None], needs: tuple[bool, bool]
) -> Tensors:
    """:func:`backward` where torch.autograd maps, which tells no rule: it unwraps and wraps."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    dims = [0 if is_batched(t) else None for t in tensors]
    plain = [
        t if t is None or dim is None else torch._remove_batch_dim(t, level, 1, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]
    size = next(t.size(0) for t, d in zip(plain, dims, strict=True) if t is not None and d == 0)
    results, places = backward(run, call, plain, dims, size, needs)
    wrapped = zip(results, places, strict=True)
    return tuple(torch._add_batch_dim(r, dim, level) for r, dim in wrapped)


def _axes(call: Call) -> tuple[int, int]:
    """Where sequences are: in whatever has a row for every row of x; in states."""
    if call.kernel.endswith("_cell"):
        return 0, 0
    return (1 if call.batch_sizes is None else 0), 1


def _output_axes(call: Call) -> list[int]:
    """Of y, the final states, and perhaps the states of all steps; or of a cell's states."""
    kernel, (rows, batch) = KERNELS[call.kernel], _axes(call)
    return ([rows] + [batch] * kernel.states + [rows])[: kernel.outputs]


def _larger(call: Call, size: int) -> Call:
    if call.lengths is not None:
        return call._replace(lengths=call.lengths.repeat_interleave(size))
    if call.batch_sizes is None:
        return call
    return call._replace(batch_sizes=call.batch_sizes * size)


def _any(dims: _Dims) -> bool:
    return any(d is not None for d in dims)


def _folded(
    tensors: Sequence[Tensor | None], dims: _Dims, axes: Sequence[int], size: int
) -> Iterator[Tensor | None]:
    for t, dim, axis in zip(tensors, dims, axes, strict=False):
        if t is None:
            yield None
            continue
        if dim is None:
            t = t.unsqueeze(axis + 1).expand(*t.shape[: axis + 1], size, *t.shape[axis + 1 :])
        else:
            t = t.movedim(dim, axis + 1)
        yield t.flatten(axis, axis + 1)


def _unfolded(results: Tensors, axes: Sequence[int], size: int) -> tuple[Tensors, tuple[int, ...]]:
    pairs = list(zip(results, axes, strict=False))
    unfolded = tuple(t.unflatten(axis, (t.size(axis) // size, size)) for t, axis in pairs)
    return unfolded, tuple(axis + 1 for _, axis in pairs)


def _one_by_one(
    run: _Run, call: Call, tensors: Sequence[Tensor | None], dims: _Dims, size: int
) -> tuple[Tensors, tuple[int, ...]]:
    def sample(v: int) -> Iterator[Tensor | None]:
        for t, dim in zip(tensors, dims, strict=True):
            # Kernels want what was kept as they left it.
            yield t if t is None or dim is None else t.select(dim, v).contiguous()

    each = [run(call, tuple(sample(v))) for v in range(size)]
    results = tuple(map(torch.stack, zip(*each, strict=True)))
    return results, (0,) * len(results)
