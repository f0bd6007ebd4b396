"""torch.compile by value: training and inference, no graph break, one compilation for all lengths.

Compiled transforms of torch.func are held too: over an autograd Function torch 2.13 answers zeros
without a word."""

import pytest
import torch
from helpers import assert_like, error_of, every_class, layers, tensors
from torch import func, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import gatedrnn

IN, H = 3, 4
# Dynamo makes instances of autograd Functions, which torch itself warns about.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Around(nn.Module):
    """A layer or a cell in the middle of a model."""

    def __init__(self, *rnns):
        super().__init__()
        self.first, self.last = nn.Linear(IN, IN), nn.Linear(rnns[-1].hidden_size, 2)
        self.rnns = nn.ModuleList(rnns)

    def forward(self, x):
        y = torch.relu(self.first(x))
        for rnn in self.rnns:
            y = rnn(y)[0] if isinstance(rnn, nn.RNNBase) else self.walk(rnn, y)
        return torch.sin(self.last(y))

    def walk(self, cell, x):
        state, outputs = None, []
        for k in range(3):
            state = cell(x[k], state)
            outputs.append(next(tensors(state)))
        return torch.stack(outputs)


def step(f, model, x):
    """The output and all gradients of a training step."""
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), leaf.grad, *(p.grad.clone() for p in model.parameters())]


def assert_close(actual, expected):
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for p, q in zip(actual, expected, strict=True):
        assert_like(p.detach(), q.detach(), strides=False)


def hold(model, shapes, backend):
    """Trains and infers over the shapes, compiled at the first of them only, as eagerly."""
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for grad in (True, False):
        for k, shape in enumerate(shapes):
            x = torch.randn(shape)
            with torch.set_grad_enabled(grad), stance(k):
                if grad:
                    assert_close(step(compiled, model, x), step(model, model, x))
                else:
                    assert_close(compiled(x), model(x))


def stance(k):
    """Lets the first call compile and no other."""
    return torch.compiler.set_stance("fail_on_recompile" if k else "default")


@layers
def test_one_compilation_serves_all_lengths_and_batches(theirs, ours):
    model = Around(ours(IN, H, 2, bidirectional=True, batch_first=True))
    model.last = nn.Linear(2 * H, 2)
    hold(model, [(2, 5, IN), (2, 9, IN), (4, 6, IN), (3, 2, IN)], "aot_eager")


def test_cells_of_every_batch():
    model = Around(gatedrnn.GRUCell(IN, H), gatedrnn.LSTMCell(H, H))
    hold(model, [(3, 2, IN), (3, 5, IN)], "aot_eager")


def test_inductor():
    """The default backend, with every class in one model."""
    model = Around(
        gatedrnn.GRU(IN, H), gatedrnn.LSTM(H, H, proj_size=3), gatedrnn.GRUCell(3, H),
        gatedrnn.LSTMCell(H, H),
    )
    hold(model, [(3, 2, IN), (3, 5, IN)], "inductor")


@layers
def test_packed_input(theirs, ours):
    m = ours(IN, H, 2, bidirectional=True)

    def loss(p):
        output, hn = m(p)
        return output.data.square().sum() + sum(t.sum() for t in tensors(hn))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for k, lengths in enumerate(([3, 6, 2, 2, 1], [4, 4, 4], [2, 8, 1, 7])):
        p = pack_sequence([torch.randn(n, IN) for n in lengths], enforce_sorted=False)
        grads = []
        for f in (compiled, loss):
            m.zero_grad()
            with stance(k):
                value = f(p)
            value.backward()
            grads.append([value, *(w.grad.clone() for w in m.parameters())])
        assert_close(*grads)


@layers
def test_dropout_draws_the_masks_of_the_seed(theirs, ours):
    m = ours(IN, H, 2, dropout=0.5)
    compiled, x = torch.compile(m, fullgraph=True, backend="aot_eager"), torch.randn(5, 2, IN)
    outputs = []
    for f in (compiled, m):
        torch.manual_seed(1)
        outputs.append(list(tensors(f(x))))
    assert_close(*outputs)


@layers
def test_autocast_inside(theirs, ours):
    m = ours(IN, H)

    def f(x):
        with torch.autocast("cpu", torch.bfloat16):
            return list(tensors(m(x)))

    x = torch.randn(5, 2, IN)
    actual = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    assert {t.dtype for t in actual} == {torch.bfloat16}
    assert_close(actual, f(x))


@every_class
def test_compiled_transforms(theirs, ours):
    m = ours(IN, H)
    is_cell = isinstance(m, nn.modules.rnn.RNNCellBase)
    w = {n: p.detach() for n, p in m.named_parameters()}
    xs = torch.randn(3, 2, IN) if is_cell else torch.randn(3, 2, 2, IN)

    def value(w, x):
        return sum(t.square().sum() for t in tensors(func.functional_call(m, w, (x,))))

    def transforms(w, xs, x, tangent):
        jvp = func.jvp(lambda x: value(w, x), (x,), (tangent,))
        samples = func.vmap(func.grad(value), (None, 0))(w, xs)
        if is_cell:
            return jvp, samples
        vjp = func.grad(value)(w, x), func.jacrev(lambda x: value(w, x))(x)
        return jvp, samples, vjp, func.vmap(value, (None, 0))(w, xs)

    compiled = torch.compile(transforms, fullgraph=True, backend="aot_eager")
    x, tangent = torch.randn_like(xs[0]), torch.randn_like(xs[0])
    assert_close(compiled(w, xs, x, tangent), transforms(w, xs, x, tangent))


@layers
def test_gradient_penalty_of_a_compiled_function(theirs, ours):
    """The first derivative by torch.func inside, the second by backward outside."""
    m = ours(IN, H)
    w = dict(m.named_parameters())

    def penalty(w, x):
        return func.grad(lambda x: func.functional_call(m, w, (x,))[0].sum())(x).square().sum()

    x = torch.randn(3, 2, IN)
    compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
    results = []
    for f in (compiled, penalty):
        value = f(w, x)
        results.append([value, *torch.autograd.grad(value, list(w.values()), allow_unused=True)])
    assert_close(*([t for t in r if t is not None] for r in results))


@layers
def test_a_compiled_module_has_no_second_derivative_and_says_so(theirs, ours):
    """torch's own limit, in its own words; never zeros."""
    m = torch.compile(ours(IN, H), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, IN, requires_grad=True)
    (g,) = torch.autograd.grad(m(x)[0].sum(), x, create_graph=True)
    error = error_of(lambda: g.square().sum().backward())
    assert "does not currently support double backward" in str(error)


def test_lstm_states_given_and_returned():
    m = gatedrnn.LSTM(IN, H, 2)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    x, hx = torch.randn(4, 2, IN), (torch.randn(2, 2, H), torch.randn(2, 2, H))
    assert_close(list(tensors(compiled(x, hx))), list(tensors(m(x, hx))))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo asks
def test_packing_inside_breaks_the_graph_and_stays_right():
    """torch traces no pack_padded_sequence: two graphs instead of one, and the same numbers."""
    m = gatedrnn.GRU(IN, H, batch_first=True)

    def f(x, lengths):
        packed = pack_padded_sequence(2 * x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(m(packed)[0], batch_first=True)[0].sin()

    compiled = torch.compile(f, backend="aot_eager")
    for lengths in ([2, 6, 4, 5, 1], [3, 3, 2]):
        arguments = torch.randn(len(lengths), max(lengths), IN), torch.tensor(lengths)
        assert_close(compiled(*arguments), f(*arguments))
