"""lengths and resets: padded batches whose sequences end and begin anew where they like."""

import math
import re

import pytest
import torch
from helpers import (
    assert_like,
    backward,
    error_of,
    hidden,
    layer_options,
    layers,
    leaf_copy,
    tensors,
)
from step_reference import by_steps
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import gatedrnn
from gatedrnn import ragged

IN, H, T = 3, 4, 6
LENGTHS = torch.tensor([4, 6, 1, 3])
B = len(LENGTHS)
RESETS = torch.zeros(B, T, dtype=torch.bool)
RESETS[0, [1, 2]] = True  # a sequence of one step in the middle
RESETS[1, [0, 5]] = True  # at the first step, where it changes nothing, and at the last
RESETS[2, 3] = True  # in the padding
CUTS = {"lengths": (LENGTHS, None), "resets": (None, RESETS), "both": (LENGTHS, RESETS)}


def given(m, cut):
    """The arguments of that name, laid out as the module wants them."""
    lengths, resets = CUTS[cut]
    if resets is not None and not m.batch_first:
        resets = resets.t()
    return {"lengths": lengths, "resets": resets}


def batch(m, **kwargs):
    shape = (B, T, IN) if m.batch_first else (T, B, IN)
    return torch.randn(shape, **kwargs)


@pytest.fixture(params=["packed", "masked"])
def way(request, monkeypatch):
    """Both ways to compute lengths; the masked one is that of values which nobody can read."""
    if request.param == "masked":
        monkeypatch.setattr(ragged, "_is_readable", lambda values: False)
    return request.param


def first_and_second(result, leaves):
    """The gradients of a loss on everything, and those of a loss on the gradients."""
    generator = torch.Generator().manual_seed(3)
    outputs = list(tensors(result))
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    first = torch.autograd.grad(outputs, leaves, cotangents, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    return [*first, *torch.autograd.grad(loss, leaves)]


@layer_options
@pytest.mark.parametrize(
    ("way", "cut"),
    [("packed", "lengths"), ("masked", "lengths"), ("packed", "resets"), ("packed", "both")],
    indirect=["way"],
)
def test_like_step_by_step(theirs, ours, options, cut, way):
    """Results, first and second derivatives, with and without initial states."""
    m = ours(IN, H, dtype=torch.float64, **options)
    for hx in (None, hidden(m, B, dtype=torch.float64)):
        x, h = leaf_copy(batch(m, dtype=torch.float64)), leaf_copy(hx)
        leaves = [x, *tensors(h), *m.parameters()]
        expected = by_steps(m, x, h, **given(m, cut))
        result = m(x, h, **given(m, cut))
        assert_like(result, expected[:2], strides=False)
        for p, q in zip(
            first_and_second(result, leaves), first_and_second(expected[:2], leaves), strict=True
        ):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)
        with torch.no_grad():
            assert_like(m(x, h, **given(m, cut)), leaf_copy(result, False), strides=False)


@layer_options
def test_lengths_are_packing_without_packing(theirs, ours, options):
    """Bit for bit, with dropout's masks, whatever the kind and the layout of both arguments."""
    options = {**options, "num_layers": 2, "dropout": 0.5}
    m = ours(IN, H, **options)
    x, hx = batch(m), hidden(m, B)
    torch.manual_seed(5)
    p = pack_padded_sequence(x, LENGTHS, m.batch_first, enforce_sorted=False)
    output, finals = m(p, hx)
    expected = [pad_packed_sequence(output, m.batch_first)[0], *tensors(finals)]
    swapped = x.transpose(0, 1).contiguous().transpose(0, 1)
    for values in (x, swapped, torch.stack([x, x], -1)[..., 0]):
        for lengths in (LENGTHS, LENGTHS.tolist(), LENGTHS.to(torch.uint8)):
            torch.manual_seed(5)
            result = list(tensors(m(values, hx, lengths=lengths)))
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@layers
def test_full_lengths_and_no_resets_change_nothing(theirs, ours, way):
    m = ours(IN, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, hx = batch(m, dtype=torch.float64), hidden(m, B, dtype=torch.float64)
    expected = m(x, hx)
    assert_like(m(x, hx, lengths=[T] * B), expected)
    if way == "packed":
        assert_like(m(x, hx, resets=torch.zeros(T, B, dtype=torch.bool)), expected)


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_never_read_and_is_zero(theirs, ours, batch_first, way):
    m = ours(IN, H, num_layers=2, bidirectional=True, batch_first=batch_first)
    clean = batch(m)
    outside = torch.arange(T) >= LENGTHS.unsqueeze(1)
    outside = outside if batch_first else outside.t()
    found = []
    for filling in (0.0, math.nan, math.inf):
        x = clean.masked_fill(outside.unsqueeze(2), filling).requires_grad_()
        result = m(x, lengths=LENGTHS)
        assert result[0][outside].count_nonzero() == 0
        backward(result)
        assert x.grad[outside].count_nonzero() == 0
        assert (x.grad[~outside] != 0).all()
        found.append([*tensors(result), x.grad])
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other, strict=True))


@layers
def test_a_reset_forgets_what_was_before(theirs, ours):
    """Not even NaN gets past it; and of a poisoned segment nothing leaves."""
    m = ours(IN, H, num_layers=2, bidirectional=True)
    x = batch(m)
    x[2, 0] = math.nan
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[[2, 3], 0] = True
    output, _ = m(x, resets=resets)
    assert output[2, 0].isnan().all()
    assert output.isnan().any(dim=-1).sum() == 1


@layers
def test_every_segment_is_as_if_alone(theirs, ours):
    m = ours(IN, H, bidirectional=True, dtype=torch.float64)
    x, hx = batch(m, dtype=torch.float64), hidden(m, B, dtype=torch.float64)
    output, _ = m(x, hx, lengths=LENGTHS, resets=RESETS.t())
    own = tuple(h[:, 0] for h in hx) if isinstance(hx, tuple) else hx[:, 0]
    for start, end in [(0, 1), (1, 2), (2, 4)]:
        assert_like(output[start:end, 0], m(x[start:end, 0], own)[0], strides=False)


@layers
def test_autocast_and_low_precision(theirs, ours, way):
    m = ours(IN, H, num_layers=2, bidirectional=True)
    x = batch(m)
    p = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16):
        expected = m(p)
        assert_like(m(x, lengths=LENGTHS)[1], expected[1], strides=False)
    low = ours(IN, H, dtype=torch.bfloat16)
    result = low(x.bfloat16(), lengths=LENGTHS)
    expected = low(pack_padded_sequence(x.bfloat16(), LENGTHS, enforce_sorted=False))
    assert_like(result[1], expected[1], strides=False)


@layers
def test_transforms(theirs, ours):
    """Forward derivatives, and vmap over inputs, and over lengths."""
    m = ours(IN, H, dtype=torch.float64)
    x, v = batch(m, dtype=torch.float64), batch(m, dtype=torch.float64)
    for arguments in ({"lengths": LENGTHS}, given(m, "both")):
        primal, tangent = torch.func.jvp(lambda x, a=arguments: m(x, **a)[0], (x,), (v,))
        expected = torch.func.jvp(lambda x, a=arguments: by_steps(m, x, **a).output, (x,), (v,))
        assert_like([primal, tangent], list(expected), strides=False)
        several = torch.func.vmap(lambda x, a=arguments: m(x, **a)[0])(torch.stack([x, v]))
        for s, alone in zip(several, (x, v), strict=True):
            assert_like(s, m(alone, **arguments)[0], strides=False)
    both = torch.stack([LENGTHS, LENGTHS.flip(0)])
    several = torch.func.vmap(lambda n: m(x, lengths=n)[0])(both)
    for s, n in zip(several, both, strict=True):
        assert_like(s, m(x, lengths=n)[0], strides=False)
    error = error_of(lambda: torch.func.vmap(lambda r: m(x, resets=r)[0])(RESETS.t()[None]))
    assert "resets are looked up on the host" in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Dynamo's own
@layers
def test_compiled_and_exported(theirs, ours):
    m = ours(IN, H, num_layers=2)
    x = batch(m)
    compiled = torch.compile(lambda x, n: m(x, lengths=n), backend="aot_eager", fullgraph=True)
    program = torch.export.export(m, (x,), {"lengths": LENGTHS}).module()
    for lengths in (LENGTHS, LENGTHS.flip(0)):
        expected = m(x, lengths=lengths)
        assert_like(compiled(x, lengths), expected, strides=False)
        assert_like(program(x, lengths=lengths), expected, strides=False)


@layers
def test_traced_by_fx(theirs, ours):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ours(IN, H)

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths)[0]

    m = Model()
    x = batch(m.rnn)
    assert torch.equal(torch.fx.symbolic_trace(m)(x, LENGTHS), m(x, LENGTHS))


@layers
def test_empty_batch(theirs, ours):
    m = ours(IN, H)
    x = torch.zeros(T, 0, IN, requires_grad=True)
    output, _ = m(x, lengths=torch.zeros(0, dtype=torch.int64))
    output.sum().backward()
    assert output.shape == (T, 0, H)
    assert m.weight_hh_l0.grad.count_nonzero() == 0
    assert m(x, resets=torch.zeros(T, 0, dtype=torch.bool))[0].shape == (T, 0, H)


@layers
def test_arguments_are_by_keyword_only(theirs, ours):
    m = ours(IN, H)
    assert type(error_of(lambda: m(batch(m), None, LENGTHS))) is TypeError


X = torch.zeros(T, B, IN)
BAD = {
    "zero": ({"lengths": [4, 6, 0, 3]}, ValueError, "1 to 6.*got 0 for sequence 2"),
    "too long": ({"lengths": [4, 7, 1, 3]}, ValueError, "1 to 6.*got 7 for sequence 1"),
    "negative": ({"lengths": [-1, 6, 1, 3]}, ValueError, "got -1 for sequence 0"),
    "floats": ({"lengths": torch.ones(B)}, TypeError, "lengths.*integers.*float32"),
    "list of floats": ({"lengths": [1.0] * B}, TypeError, "lengths.*integers"),
    "booleans": ({"lengths": torch.ones(B, dtype=torch.bool)}, TypeError, "integers.*bool"),
    "too few": ({"lengths": [1, 2]}, ValueError, r"\(4,\).*\(2,\)"),
    "2-D": ({"lengths": LENGTHS[None]}, ValueError, r"\(4,\).*\(1, 4\)"),
    "a number": ({"lengths": torch.tensor(3)}, ValueError, r"\(4,\).*\(\)"),
    "resets of integers": ({"resets": RESETS.t().long()}, TypeError, "boolean.*int64"),
    "a list of resets": ({"resets": RESETS.tolist()}, TypeError, "boolean.*list"),
    "resets turned": ({"resets": RESETS}, ValueError, r"\(6, 4\).*\(4, 6\)"),
    "resets of one sequence": ({"resets": RESETS[0]}, ValueError, r"\(6, 4\).*\(6,\)"),
    "resets that would broadcast": ({"resets": RESETS.t()[:, :1]}, ValueError, r"\(6, 4\)"),
}


@pytest.mark.parametrize("case", BAD)
@layers
def test_bad_arguments_are_refused_in_clear_words(theirs, ours, case):
    arguments, kind, words = BAD[case]
    error = error_of(lambda: ours(IN, H)(X, **arguments))
    assert type(error) is kind
    assert re.search(words, str(error)), error
    assert ours.__name__ in str(error)


@layers
@pytest.mark.parametrize("arguments", [{"lengths": [1]}, {"resets": RESETS[:1]}])
def test_only_a_padded_batch_has_them(theirs, ours, arguments):
    m = ours(IN, H)
    for x in (X[:, 0], pack_sequence([X[:, 0]])):
        error = error_of(lambda x=x: m(x, **arguments))
        assert type(error) is ValueError
        assert "padded 3-D input" in str(error)


@layers
def test_bad_reset_hx(theirs, ours):
    m = ours(IN, H)
    for wrong in (hidden(m, 3), hidden(m, B, dtype=torch.float64)):
        error = error_of(lambda wrong=wrong: m(X, resets=RESETS.t(), reset_hx=wrong))
        assert "expected reset_hx" in str(error)
        assert "(1, 4, 4) of torch.float32" in str(error)
    error = error_of(lambda: m(X, reset_hx=hidden(m, B)))
    assert type(error) is ValueError
    assert "resets" in str(error)


@layers
def test_other_bad_input_is_refused_as_ever(theirs, ours):
    m, plain = ours(IN, H), theirs(IN, H)
    for x, hx in [
        (X[..., :2], None),
        (X.double(), None),
        (X, hidden(m, 3)),
        (X, hidden(m, None)),
        (X[:0], None),
        (X[None], None),
    ]:
        expected = error_of(lambda x=x, hx=hx: plain(x, hx))
        error = error_of(lambda x=x, hx=hx: m(x, hx, lengths=LENGTHS))
        assert type(error) is type(expected)
        assert str(error).replace("GRU", "LSTM") == str(expected).replace("GRU", "LSTM")


def test_lengths_that_cannot_be_read_are_taken_as_the_nearest_that_can_be(monkeypatch):
    monkeypatch.setattr(ragged, "_is_readable", lambda values: False)
    m = gatedrnn.GRU(IN, H)
    x = batch(m)
    assert_like(m(x, lengths=[0, 9, 1, 3]), m(x, lengths=[1, 6, 1, 3]))


@layer_options
def test_resets_from_another_state(theirs, ours, options):
    m = ours(IN, H, dtype=torch.float64, **options)
    x = leaf_copy(batch(m, dtype=torch.float64))
    hx, again = (leaf_copy(hidden(m, B, dtype=torch.float64)) for _ in range(2))
    leaves = [x, *tensors((hx, again)), *m.parameters()]
    result = m(x, hx, reset_hx=again, **given(m, "both"))
    expected = by_steps(m, x, hx, reset_hx=again, **given(m, "both"))[:2]
    assert_like(result, expected, strides=False)
    for p, q in zip(
        first_and_second(result, leaves), first_and_second(expected, leaves), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@layers
def test_recurrent_policy_of_reinforcement_learning(theirs, ours):
    """A rollout of several environments, as recurrent policies replay it: before every step the
    state is multiplied by (1 - episode_start). At once it is three lines."""
    policy = ours(IN, H, num_layers=2)
    observations, starts = batch(policy), torch.rand(T, B) < 0.3
    starts[0, 0], starts[0, 1] = True, False
    carried = hidden(policy, B)

    state, expected = list(tensors(carried)), []
    for x, start in zip(observations, starts, strict=True):
        state = [s * (1.0 - start.float()).view(1, -1, 1) for s in state]
        y, after = policy(x[None], tuple(state) if policy.mode == "LSTM" else state[0])
        state = list(tensors(after))
        expected.append(y)

    zero = tuple(torch.zeros_like(s) for s in tensors(carried))
    zero = zero if policy.mode == "LSTM" else zero[0]
    output, last = policy(observations, carried, resets=starts, reset_hx=zero)

    torch.testing.assert_close(output, torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert_like(list(tensors(last)), state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_signature_of_torch_stands(cell):
    """A state dict, a stream of random numbers and results as if there were no such arguments."""
    torch.manual_seed(0)
    m = getattr(gatedrnn, cell.__name__)(IN, H, num_layers=2)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert m.state_dict().keys() == cell(IN, H, num_layers=2).state_dict().keys()
    assert torch.equal(torch.rand(3), after)


@layers
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cut", [None, *CUTS])
def test_functions_take_what_modules_take(theirs, ours, batch_first, cut):
    m = ours(IN, H, num_layers=2, bidirectional=True, batch_first=batch_first, recompute=True)
    function = getattr(gatedrnn.functional, ours.__name__.lower())
    x, hx, weights = batch(m), hidden(m, B), list(m.parameters())
    asked = {**(given(m, cut) if cut else {}), "output_hidden_states": True}
    if cut in ("resets", "both"):
        asked["reset_hx"] = hidden(m, B)
    result = function(x, weights, hx, bidirectional=True, batch_first=batch_first, recompute=True,
                      **asked)
    expected = m(x, hx, **asked)
    assert len(result) == 3
    for p, q in zip(tensors(result), tensors(expected), strict=True):
        assert torch.equal(p, q)
    assert len(function(x, weights, hx, bidirectional=True, batch_first=batch_first)) == 2


@layers
def test_functions_recompute(theirs, ours):
    """What is kept for backward is less, as with the module that is told so."""
    function = getattr(gatedrnn.functional, ours.__name__.lower())
    m, x = ours(IN, H), torch.randn(T, B, IN)

    def kept(recompute):
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function(x, list(m.parameters()), recompute=recompute)
        return sum(sizes)

    assert kept(True) < kept(False)
