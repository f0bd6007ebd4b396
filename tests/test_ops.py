"""The ops themselves: torch.library.opcheck on each, and what FlopCounterMode counts for them."""

import pytest
import torch
from helpers import backward, cells, hidden, is_lstm, layers, leaf_copy, tensors
from torch import nn
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import gatedrnn

T, B, IN, H = 3, 2, 4, 5
OPS = torch.ops.gatedrnn
SIZES = torch.tensor([3, 2, 1])
BRIEF = ("test_schema", "test_faketensor")  # without compiling


def layer(cls, batch_sizes=None, **options):
    """What a layer's op takes: x, the states, the weights."""
    m = cls(IN, H, **options)
    batch = B if batch_sizes is None else 3
    x = torch.randn((T, B, IN) if batch_sizes is None else (6, IN))
    return x, *tensors(hidden(m, batch)), [p.detach() for p in m.parameters()]


LAYERS = [
    pytest.param(cls, sizes, options, id=f"{cls.__name__} {options} {'' if sizes is None else 'p'}")
    for cls, options in [
        (gatedrnn.GRU, {}), (gatedrnn.GRU, {"bias": False, "bidirectional": True}),
        (gatedrnn.LSTM, {}), (gatedrnn.LSTM, {"proj_size": 2, "bidirectional": True}),
    ]
    for sizes in (None, SIZES)
]


@pytest.mark.parametrize(("cls", "sizes", "options"), LAYERS)
def test_opcheck_of_layers(cls, sizes, options):
    name = cls.__name__.lower()
    x, *states, weights = layer(cls, sizes, **options)
    given = x, *states, weights, options.get("bias", True), sizes
    forward, back = getattr(OPS, f"{name}_forward"), getattr(OPS, f"{name}_backward")
    opcheck(forward.default, (*given, True, False))
    opcheck(forward.default, (*given, False, False), test_utils=BRIEF)
    results = forward(*given, True, False)
    outputs = results[: 1 + len(states)]
    kept = results[0], *results[1 + len(states) :]
    dy, *dstates = map(torch.randn_like, outputs)
    opcheck(back.default, (dy, *dstates, *given, *kept, True, True, False))
    for d, needs in ((dy, (False, True)), (dy, (True, False)), (None, (True, True))):
        opcheck(back.default, (d, *dstates, *given, *kept, *needs, False), test_utils=BRIEF)


@cells
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_of_cells(theirs, ours, bias):
    name = "lstm_cell" if is_lstm(ours) else "gru_cell"
    m = ours(IN, H, bias=bias)
    given = torch.randn(B, IN), *tensors(hidden(m, B))
    w_ih, w_hh, *biases = (p.detach() for p in m.parameters())
    forward, back = getattr(OPS, f"{name}_forward"), getattr(OPS, f"{name}_backward")
    arguments = *given, w_ih, w_hh, *(biases or (None, None))
    opcheck(forward.default, (*arguments, True))
    opcheck(forward.default, (*arguments, False), test_utils=BRIEF)
    *outputs, saved = forward(*arguments, True)
    cotangents = map(torch.randn_like, outputs)
    opcheck(back.default, (*cotangents, *given, w_ih, w_hh, bias, saved, True, True))


@pytest.mark.parametrize(("cls", "sizes", "options"), LAYERS)
def test_opcheck_of_traced_layers(cls, sizes, options):
    x, *states, weights = layer(cls, sizes, **options)
    op = getattr(OPS, f"{cls.__name__.lower()}_traced").default
    inputs = [t.requires_grad_() for t in (x, *states, *weights)]
    opcheck(op, (inputs, options.get("bias", True), sizes))


@cells
def test_opcheck_of_traced_cells(theirs, ours):
    m = ours(IN, H)
    inputs = [t.detach().requires_grad_() for t in (
        torch.randn(B, IN), *tensors(hidden(m, B)), *m.parameters())]
    name = "lstm_cell_traced" if is_lstm(ours) else "gru_cell_traced"
    opcheck(getattr(OPS, name).default, (inputs, True, None))


# ---- flops ----


def flops(m, *inputs):
    """Of a forward, and of it with its backward."""
    with FlopCounterMode(display=False) as counter:
        result = m(*inputs)
        forward = counter.get_total_flops()
        backward(result)
    return forward, counter.get_total_flops()


def products(m):
    """Multiply-adds that a step of one sequence needs: each weight once."""
    return sum(p.numel() for n, p in m.named_parameters() if "bias" not in n)


@layers
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_flops_of_layers(theirs, ours, options):
    """torch counts none of its LSTM's."""
    m = ours(IN, H, **options)
    x, hx = torch.randn(T, B, IN, requires_grad=True), leaf_copy(hidden(m, B))
    forward = 2 * T * B * products(m)
    assert flops(m, x, hx) == (forward, 3 * forward)
    assert flops(m.requires_grad_(False), x, hx) == (forward, 2 * forward)
    first = sum(p.numel() for n, p in m.named_parameters() if n.startswith("weight_ih_l0"))
    forward, both = flops(m.requires_grad_(True), x.detach(), hx)
    assert both == 3 * forward - 2 * T * B * first
    if not is_lstm(m):
        a = nn.GRU(IN, H, **options)
        assert flops(a, x.detach(), hx) == (forward, both)


def test_flops_of_a_projection():
    m = gatedrnn.LSTM(IN, H, proj_size=2)
    x, hx = torch.randn(T, B, IN, requires_grad=True), leaf_copy(hidden(m, B))
    forward = 2 * T * B * products(m)
    assert flops(m, x, hx) == (forward, 3 * forward)


@cells
def test_flops_of_cells(theirs, ours):
    a, b = theirs(IN, H), ours(IN, H)
    x, hx = torch.randn(B, IN, requires_grad=True), leaf_copy(hidden(a, B))
    assert flops(b, x, hx) == flops(a, x, hx) == (2 * B * products(b), 6 * B * products(b))


@layers
def test_flops_of_a_recorded_program(theirs, ours):
    m, x = ours(IN, H), torch.randn(T, B, IN, requires_grad=True)
    program = torch.export.export(m, (x,)).module()
    assert flops(program, x) == flops(m, x)
