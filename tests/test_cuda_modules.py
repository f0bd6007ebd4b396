"""The modules on a GPU: autocast, dropout, derivatives, state dicts, training, conversion."""

import copy

import pytest
import torch
from cuda_cases import (
    BFLOAT16,
    DEVICE,
    FLOAT32,
    IN,
    TF32,
    H,
    gradients_of,
    layer_pairs,
    needs_gpu,
    precision,
)
from helpers import (
    CELL_PAIRS,
    LAYER_PAIRS,
    assert_grads_like,
    assert_like,
    hidden,
    leaf_copy,
    pair,
    tensors,
)
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import gatedrnn

pytestmark = needs_gpu
every_class = pytest.mark.parametrize(("theirs", "ours"), LAYER_PAIRS + CELL_PAIRS,
                                      ids=[p[0].__name__ for p in LAYER_PAIRS + CELL_PAIRS])

@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(theirs, ours, dtype):
    a, b = pair(theirs, ours, IN, H, device=DEVICE)
    is_cell = isinstance(a, nn.modules.rnn.RNNCellBase)
    x = torch.randn((17, IN) if is_cell else (7, 17, IN), device=DEVICE)
    low = [ours(IN, H, device=DEVICE, dtype=dtype), leaf_copy(x.to(dtype))]
    low[0].load_state_dict(b.state_dict())
    leaf = leaf_copy(x)
    with torch.autocast(DEVICE, dtype):
        theirs_result, result = list(tensors(a(x))), list(tensors(b(leaf)))
    assert {t.dtype for t in result} == {dtype}
    expected = list(tensors(low[0](low[1])))
    for p, q, r in zip(result, expected, theirs_result, strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(p.float(), r.float(), rtol=0, atol=16 * torch.finfo(dtype).eps)
    torch.autograd.backward([t.float().sum() for t in result])
    torch.autograd.backward([t.float().sum() for t in expected])
    assert leaf.grad.dtype == torch.float32
    assert torch.equal(leaf.grad, low[1].grad.float())
    for p, q in zip(b.parameters(), low[0].parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, q.grad.float())


@layer_pairs
@pytest.mark.parametrize("mode", [TF32, BFLOAT16], ids=str)
def test_dropout_between_layers(theirs, ours, mode):
    """The masks are torch.dropout's of the GPU's generator, drawn over a layer's whole output."""
    options = {"device": DEVICE, "dtype": mode.dtype}
    both = ours(IN, H, num_layers=2, dropout=0.5, **options)
    one, two = ours(IN, H, **options), ours(H, H, **options)
    names = [n for n, _ in one.named_parameters()]
    state = both.state_dict()
    one.load_state_dict({n: state[n] for n in names})
    two.load_state_dict({n: state[n.replace("_l0", "_l1")] for n in names})
    x = torch.randn(7, 17, IN, **options)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(gradients_of(both, x))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    torch.manual_seed(3)
    expected = two(torch.dropout(one(x)[0], 0.5, True))[0]
    assert torch.equal(runs[0][0], expected)
    both.eval()
    assert torch.equal(both(x)[0], two(one(x)[0])[0])


@every_class
def test_second_derivatives_are_those_of_the_cpu(theirs, ours):
    module = ours(3, 5, dtype=torch.float64)
    x = torch.randn((2, 3) if theirs in (nn.GRUCell, nn.LSTMCell) else (4, 2, 3),
                    dtype=torch.float64)
    found = []
    for device in ("cpu", DEVICE):
        m = copy.deepcopy(module).to(device)
        leaf = leaf_copy(x.to(device))
        wanted = [leaf, *m.parameters()]
        first = torch.autograd.grad([t.square().sum() for t in tensors(m(leaf))], wanted,
                                    create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append([t.detach().cpu() for t in (*first, *second)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@layer_pairs
def test_to_the_gpu_and_back(theirs, ours):
    module = ours(IN, H, num_layers=2, bidirectional=True)
    x = torch.randn(7, 3, IN)
    before = module(x)
    module.cuda()
    assert all(p.is_cuda for p in module.parameters()) and all(
        w.is_cuda for w in module._flat_weights)
    with precision(FLOAT32):
        there = module(x.to(DEVICE))
    assert all(t.is_cuda for t in tensors(there))
    for p, q in zip(*map(tensors, (there, before)), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-5, atol=2e-6)
    module.cpu()
    assert all(torch.equal(p, q) for p, q in zip(*map(tensors, (module(x), before)), strict=True))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}],
                         ids=str)
@layer_pairs
def test_state_dicts_are_exchanged_and_results_look_like_those_of_torch(theirs, ours, options):
    a, b = pair(theirs, ours, IN, H, device=DEVICE, **options)
    back = theirs(IN, H, device=DEVICE, **options)
    back.load_state_dict(b.state_dict())
    x, hx = torch.randn(7, 17, IN, device=DEVICE), hidden(a, 17, device=DEVICE)
    with precision(FLOAT32):
        assert_like(b(x, hx), a(x, hx))
        assert_like(back(x, hx), a(x, hx), rtol=0, atol=0)
        packed = pack_sequence([x[:n, k] for k, n in enumerate((2, 7, 5))], enforce_sorted=False)
        assert_like(b(packed), a(packed))


@layer_pairs
def test_training_follows_torch(theirs, ours):
    modules = pair(theirs, ours, IN, H, num_layers=2, device=DEVICE, batch_first=True)
    x = torch.randn(17, 20, IN, device=DEVICE)
    losses = []
    with precision(FLOAT32):
        for module in modules:
            optimizer = torch.optim.Adam(module.parameters(), lr=0.02, fused=True)
            for _ in range(8):
                optimizer.zero_grad()
                loss = (module(x)[0].mean(-1) - x[..., 0]).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert losses[8:] == pytest.approx(losses[:8], rel=1e-3)
    assert losses[7] < 0.99 * losses[0]


def test_convert_and_revert_a_model_on_the_gpu():
    model = nn.ModuleDict({"rnn": nn.GRU(IN, H, device=DEVICE), "head": nn.Linear(H, 1)}).cuda()
    x = torch.randn(7, 3, IN, device=DEVICE)
    with precision(FLOAT32):
        expected = model["rnn"](x)
        gatedrnn.convert(model)
        assert type(model["rnn"]) is gatedrnn.GRU
        result = model["rnn"](x)
        assert_like(result, expected)
        result[0].sum().backward()
        gatedrnn.revert(model)
        assert all(p.grad is not None for p in model["rnn"].parameters())
        assert_like(model["rnn"](x), expected, rtol=0, atol=0)


@layer_pairs
def test_gradients_accumulate_over_two_calls(theirs, ours):
    a, b = pair(theirs, ours, IN, H, device=DEVICE)
    x = torch.randn(7, 17, IN, device=DEVICE)
    with precision(FLOAT32):
        for module in (a, b):
            first = module(x)
            state = first[1]
            second = module(x, state)
            torch.autograd.backward([t.square().sum() for t in tensors((first, second))])
        assert_grads_like(b, a)
