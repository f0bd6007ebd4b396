"""PackedSequence: order of samples and states, padding, gradients, bad packed inputs."""

import math
import re

import pytest
import torch
from helpers import (
    assert_grads_like,
    assert_like,
    assert_same_error,
    backward,
    error_of,
    hidden,
    is_lstm,
    layer_options,
    layers,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)

import gatedrnn

IN, H = 3, 4

LENGTHS = {
    "equal": [4, 4, 4],
    "sorted": [5, 3, 3, 1],
    "unsorted": [2, 5, 1, 3],
    "one": [4],
    "steps of one": [1, 1],
    "longest last": [1, 2, 7],
}


def packed(lengths, dtype=torch.float32):
    return pack_sequence([torch.randn(n, IN, dtype=dtype) for n in lengths], enforce_sorted=False)


@layer_options
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
def test_results_and_gradients(theirs, ours, options, lengths, with_hx):
    a, b = pair(theirs, ours, IN, H, **options)
    p = packed(LENGTHS[lengths])
    hx = hidden(a, len(LENGTHS[lengths])) if with_hx else None
    results, leaves = [], []
    for m in (a, b):
        q, h = leaf_copy(p), leaf_copy(hx)
        results.append(m(q, h))
        backward(results[-1])
        leaves.append((q, h))
    mine = results[1][0]
    assert type(mine) is PackedSequence
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(mine, field) is getattr(p, field)
    assert_like(results[1], results[0])
    assert_grads_like(b, a)
    for x, y in zip(*map(tensors, leaves), strict=True):
        assert_like(y.grad, x.grad)
    with torch.no_grad():
        assert all(
            torch.equal(x, y) for x, y in zip(*map(tensors, (b(p, hx), results[1])), strict=True)
        )


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes(theirs, ours, dtype):
    a, b = pair(theirs, ours, IN, H, num_layers=2, bidirectional=True, dtype=dtype)
    p = packed([2, 4, 1], dtype)
    results = a(p), b(p)
    assert_like(results[1], results[0])
    for result in results:
        backward(result)
    assert_grads_like(b, a)


@layers
def test_each_sample_is_as_if_alone(theirs, ours):
    """Own last step, own start of the reverse direction, own state of hx: in the caller's order."""
    m = ours(IN, H, bidirectional=True)
    lengths = [2, 5, 1, 3]
    samples = [torch.randn(n, IN) for n in lengths]
    hx = hidden(m, len(lengths))
    output, hn = m(pack_sequence(samples, enforce_sorted=False), hx)
    for i, (sample, y) in enumerate(zip(samples, unpack_sequence(output), strict=True)):
        own = tuple(h[:, i] for h in hx) if is_lstm(m) else hx[:, i]
        alone, last = m(sample, own)
        torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-6)
        for s, t in zip(tensors(hn), tensors(last), strict=True):
            torch.testing.assert_close(s[:, i], t, rtol=1e-5, atol=1e-6)


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_never_read_and_gets_no_gradient(theirs, ours, batch_first):
    m = ours(IN, H, num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths = torch.tensor([2, 5, 1])
    clean = torch.randn(3, 5, IN)
    padded = clean.clone()
    for i, n in enumerate(lengths):
        padded[i, n:] = math.nan
    results = []
    for values in (clean, padded):
        x = (values if batch_first else values.transpose(0, 1)).clone().requires_grad_()
        p = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        output, hn = m(p)
        backward((output, hn))
        result, n = pad_packed_sequence(output, batch_first)
        results.append([result, *tensors(hn), x.grad])
        assert torch.equal(n, lengths)
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)
    gradient = results[1][-1] if batch_first else results[1][-1].transpose(0, 1)
    for i, n in enumerate(lengths):
        assert gradient[i, n:].count_nonzero() == 0
        assert gradient[i, :n].count_nonzero() > 0


@layers
def test_poison_stays_in_its_sample(theirs, ours):
    m = ours(IN, H)
    p = packed([4, 3, 2])
    bad = PackedSequence(p.data.clone(), p.batch_sizes, p.sorted_indices, p.unsorted_indices)
    bad.data[4] = math.nan  # sample 1 at step 1
    for x, y in zip(unpack_sequence(m(p)[0]), unpack_sequence(m(bad)[0]), strict=True):
        same = (x == y).all(dim=1)
        assert same.tolist() in ([True] * len(x), [True] + [False] * (len(x) - 1))
    assert m(bad)[0].data.isnan().any(dim=1).sum() == 2


@layers
def test_nothing_is_written_and_nothing_shared(theirs, ours):
    m = ours(IN, H)
    p, hx = packed([1, 3, 2]), hidden(m, 3)
    given = [p.data, p.batch_sizes, p.sorted_indices, p.unsorted_indices, *tensors(hx)]
    before = [t.clone() for t in given]
    result = list(tensors(m(p, hx)))
    assert all(torch.equal(t, u) for t, u in zip(given, before, strict=True))
    storages = [t.untyped_storage().data_ptr() for t in [*given, *result]]
    assert len(set(storages)) == len(storages)


@layers
def test_batch_first_is_ignored_and_sorted_input_carries_no_indices(theirs, ours):
    a, b = pair(theirs, ours, IN, H, batch_first=True)
    p = pack_padded_sequence(torch.randn(2, 4, IN), [4, 2], batch_first=True)
    result = b(p)
    assert result[0].sorted_indices is None
    assert result[0].unsorted_indices is None
    assert_like(result, a(p))


@layers
def test_packed_data_of_any_layout(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    p = packed([4, 2])
    strided_sizes = torch.stack([p.batch_sizes, p.batch_sizes], dim=1)[:, 0]
    for data in (p.data.t().contiguous().t(), p.data[:1].expand(p.data.shape)):
        q = PackedSequence(data, strided_sizes)
        assert_like(b(q), a(PackedSequence(data, p.batch_sizes)))


class Subclass(PackedSequence):
    """Some libraries derive from PackedSequence."""


@layers
def test_subclass_in_plain_packed_sequence_out(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    p = packed([4, 2])
    q = Subclass(p.data, p.batch_sizes, p.sorted_indices, p.unsorted_indices)
    result = b(q)
    assert type(result[0]) is type(a(q)[0]) is PackedSequence
    assert_like(result, b(p))


@layers
def test_requires_grad_of_data_alone(theirs, ours):
    a, b = pair(theirs, ours, IN, H)
    for m in (a, b):
        m.requires_grad_(False)
    p = leaf_copy(packed([4, 2]))
    assert_like(b(p), a(p))
    assert b(p)[0].data.requires_grad
    assert not b(leaf_copy(p, requires_grad=False))[0].data.requires_grad


@layers
def test_second_backward_and_hooks_through_packing(theirs, ours):
    """The usual pipeline: pad, pack, layer, unpack, loss on the padded result."""
    losses = []
    for m in pair(theirs, ours, IN, H, num_layers=2, bidirectional=True):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(m.parameters(), lr=0.05)
        x, lengths = torch.randn(4, 6, IN), torch.tensor([3, 6, 1, 4])
        for _ in range(4):
            optimizer.zero_grad()
            p = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            output, _ = pad_packed_sequence(m(p)[0], batch_first=True, padding_value=-1.0)
            loss = (output - x.mean()).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5)


# ---- bad packed inputs ----

DATA = torch.zeros(5, IN)
SIZES = torch.tensor([2, 2, 1])
SWAP = torch.tensor([1, 0])


def states(m, *shape, **kwargs):
    h = torch.zeros(shape, **kwargs)
    return (h, h) if is_lstm(m) else h


GRU_WORDS = {
    "dtype": lambda m: (PackedSequence(DATA.double(), SIZES),),
    "int dtype": lambda m: (PackedSequence(DATA.long(), SIZES),),
    "features": lambda m: (PackedSequence(torch.zeros(5, 9), SIZES),),
    "features, equal lengths": lambda m: (PackedSequence(torch.zeros(4, 9), torch.tensor([2, 2])),),
    "features, far too many": lambda m: (
        PackedSequence(torch.zeros(64, 3000), torch.full((8,), 8)),
    ),
    "3-D data": lambda m: (PackedSequence(DATA[None], SIZES),),
    "1-D data": lambda m: (PackedSequence(torch.zeros(5), SIZES),),
    "hx batch": lambda m: (PackedSequence(DATA, SIZES), states(m, 1, 3, H)),
    "hx layers": lambda m: (PackedSequence(DATA, SIZES), states(m, 2, 2, H)),
    "hx size": lambda m: (PackedSequence(DATA, SIZES), states(m, 1, 2, 9)),
    "hx rank": lambda m: (PackedSequence(DATA, SIZES), states(m, 2, H)),
}


@pytest.mark.parametrize("case", GRU_WORDS)
@layers
def test_refused_in_the_words_of_torch_gru(theirs, ours, case):
    """nn.GRU checks its packed input; nn.LSTM does not, reads past its weights and may crash.

    Ours checks both with the words that nn.GRU has for it; an LSTM says hidden[0] for h.
    """
    m, gru = ours(IN, H), nn.GRU(IN, H)
    arguments = GRU_WORDS[case]
    error, expected = error_of(lambda: m(*arguments(m))), error_of(lambda: gru(*arguments(gru)))
    assert type(error) is type(expected)
    assert str(error).replace("hidden[0] size", "hidden size") == str(expected)


BAD_PACKING = {
    "data with rows to spare": (
        lambda m: (PackedSequence(torch.zeros(6, IN), SIZES),),
        r"6.*5|5.*6",
    ),
    "data with a row missing": (
        lambda m: (PackedSequence(torch.zeros(4, IN), SIZES),),
        r"4.*5|5.*4",
    ),
    "growing batch_sizes": (
        lambda m: (PackedSequence(DATA, torch.tensor([2, 1, 2])),),
        "batch_sizes",
    ),
    "negative batch size": (
        lambda m: (PackedSequence(torch.zeros(2, IN), torch.tensor([3, -1])),),
        "batch_sizes",
    ),
    "int32 batch_sizes": (lambda m: (PackedSequence(DATA, SIZES.int()),), "batch_sizes|Long|int64"),
    "float batch_sizes": (
        lambda m: (PackedSequence(DATA, SIZES.float()),),
        "batch_sizes|Long|int64",
    ),
    "2-D batch_sizes": (lambda m: (PackedSequence(DATA, SIZES[None]),), "batch_sizes"),
    "no steps": (
        lambda m: (PackedSequence(torch.zeros(0, IN), torch.zeros(0, dtype=torch.int64)),),
        "(?i)batch_sizes|length|empty",
    ),
    "first step empty": (
        lambda m: (PackedSequence(torch.zeros(0, IN), torch.zeros(1, dtype=torch.int64)),),
        "(?i)batch_sizes|length|empty",
    ),
    "unsorted, hx with too many rows": (
        lambda m: (PackedSequence(DATA, SIZES, SWAP, SWAP), states(m, 1, 3, H)),
        r"\(1, 2, 4\)",
    ),
    "unsorted, hx with too few rows": (
        lambda m: (PackedSequence(DATA, SIZES, SWAP, SWAP), states(m, 1, 1, H)),
        r"\(1, 2, 4\)",
    ),
    "float64 hx": (
        lambda m: (PackedSequence(DATA, SIZES), states(m, 1, 2, H, dtype=torch.float64)),
        "float64.*float32|float32.*float64",
    ),
    "meta data": (lambda m: (PackedSequence(DATA.to("meta"), SIZES),), "meta.*cpu|cpu.*meta"),
    "meta hx": (
        lambda m: (PackedSequence(DATA, SIZES), states(m, 1, 2, H, device="meta")),
        "meta.*cpu|cpu.*meta",
    ),
}


@pytest.mark.parametrize("case", BAD_PACKING)
@layers
def test_bad_packing_is_refused_in_clear_words(theirs, ours, case):
    """torch.nn cuts, broadcasts, or fails inside; wrong rows must never be read or dropped."""
    arguments, pattern = BAD_PACKING[case]
    m = ours(IN, H)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            error = error_of(lambda: m(*arguments(m)))
        assert isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)), repr(error)
        assert re.search(pattern, str(error)), error
    assert m(PackedSequence(DATA, SIZES))[0].data.shape == (5, H)


@layers
def test_lengths_beyond_the_padded_tensor(theirs, ours):
    """pack_padded_sequence lets them pass; its rows then do not add up to batch_sizes."""
    p = pack_padded_sequence(torch.zeros(3, 2, IN), [5, 2])
    assert p.data.size(0) != p.batch_sizes.sum()
    assert "batch_sizes" in str(error_of(lambda: ours(IN, H)(p)))


def test_one_wrong_state_of_an_lstm():
    m = gatedrnn.LSTM(IN, H)
    good = torch.zeros(1, 2, H)
    for hx, which in [((good, torch.zeros(1, 3, H)), 1), ((torch.zeros(1, 3, H), good), 0)]:
        error = error_of(lambda hx=hx: m(PackedSequence(DATA, SIZES), hx))
        assert type(error) is RuntimeError
        assert str(error) == f"Expected hidden[{which}] size (1, 2, 4), got [1, 3, 4]"


def test_gru_refuses_a_tuple_of_states_with_packed_input():
    hx = (torch.zeros(1, 2, H),) * 2
    p = PackedSequence(DATA, SIZES)
    assert type(error_of(lambda: gatedrnn.GRU(IN, H)(p, hx))) is type(
        error_of(lambda: nn.GRU(IN, H)(p, hx))
    )


@layers
def test_packing_itself_refuses_what_it_refused(theirs, ours):
    """Empty sequences never reach the layer: torch's own message stands."""
    assert_same_error(
        lambda: ours(IN, H)(pack_padded_sequence(torch.zeros(3, 2, IN), [3, 0])),
        lambda: theirs(IN, H)(pack_padded_sequence(torch.zeros(3, 2, IN), [3, 0])),
    )
