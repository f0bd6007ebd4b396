"""The other dtypes, and that float32 and float64 run on the compiled ops."""

import pytest
import torch
from equivalence import CELLS, LAYERS, LAYOUTS, OURS, Case, Trial, check, draw, run
from torch.utils._python_dispatch import TorchDispatchMode

LOW = (torch.bfloat16, torch.float16)
OPTIONS = [
    {},
    {"layers": 2, "bidirectional": True},
    {"form": "unsorted", "batch_first": True},
    {"bias": False, "states": False},
]


@pytest.mark.parametrize(
    "case",
    [Case(cell, (9, 7, 11, 33), dtype, **o) for cell in LAYERS for dtype in LOW for o in OPTIONS]
    + [Case("lstm", (9, 7, 11, 33), dtype, proj=5) for dtype in LOW]
    + [Case(cell, (1, 1, 5, 7), dtype) for cell in LAYERS for dtype in LOW]
    + [Case(cell, (12, 3, 40, 130), dtype, bidirectional=True) for cell in LAYERS for dtype in LOW]
    + [Case(cell, (3, 0, 5, 7), dtype, bidirectional=True) for cell in LAYERS for dtype in LOW]
    + [Case(cell, (9, 7, 11, 33), torch.bfloat16, layout=layout, batch_first=layout == "transposed")
       for cell in LAYERS for layout in LAYOUTS]
    + [Case(cell, (7, 11, 33), dtype) for cell in CELLS for dtype in LOW],
    ids=str,
)
def test_low_precision_is_no_worse_than_torch(case):
    check(case)


def slow_gates(module, data):
    """Gates that keep the state almost unchanged, so that it moves by little and for long."""
    hidden = module.hidden_size
    for parameter in module.parameters():
        parameter.mul_(0.1)
    module.bias_ih_l0[hidden : 2 * hidden] = 5  # z of GRU, f of LSTM
    module.bias_ih_l0[2 * hidden : 3 * hidden] = 1  # n of GRU, g of LSTM
    if module.mode == "LSTM":
        module.bias_ih_l0[:hidden] = -3
    data.inputs = {n: v * (n == "x") for n, v in data.inputs.items()}


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_gradients_where_the_output_does_not_tell_the_gates(dtype):
    """Where z is close to 1, n is lost in the rounding of h' = (1 - z) n + z h: it must be kept."""
    check(Case("gru", (300, 2, 3, 33), dtype), slow_gates)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_what_waits_for_backward_is_stored_in_16_bits(cell, dtype):
    """But for an LSTM's cell states, which are carried in float32."""
    T, B, H = 6, 4, 32
    kept = {}

    def note(t):
        if t.dim() == 3 and t.size(0) == T:
            kept[t.untyped_storage().data_ptr()] = t.nbytes
        return t

    x = torch.randn(T, B, 5, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = OURS[cell](5, H, dtype=dtype)(x)[0]
    assert y.requires_grad
    units = 2 * (1 + 4) + (4 if cell == "lstm" else 0)  # y, four gates, c
    assert sum(kept.values()) == T * B * (units * H + 2 * 5)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_state_is_carried_in_float32(cell, dtype):
    """A state kept in the low dtype would stop moving once a step is below half its spacing."""
    trial = Trial(Case(cell, (300, 2, 3, 9), dtype), slow_gates)
    ours, ref = trial.run(wrt=()), trial.oracle()
    last = "h_n" if cell == "gru" else "c_n"
    spacing = torch.finfo(dtype).eps * ref[last].abs()
    assert ((ours[last] - ref[last]).abs() <= spacing).all()
    assert ((trial.peer()[last] - ref[last]).abs() > 2 * spacing).any(), "an easy case"


def small_weights(module, data):
    """Far from the poles that sigmoid and tanh have in the complex plane."""
    for parameter in module.parameters():
        parameter.mul_(0.3)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize(
    "case",
    [
        *(
            Case(cell, (4, 3, 5, 17), torch.complex64, **options)
            for cell in LAYERS
            for options in ({"layers": 2, "bidirectional": True}, {"batch_first": True})
        ),
        Case("lstm", (4, 3, 5, 17), torch.complex64, proj=3),
        *(Case(cell, (3, 5, 17), torch.complex64) for cell in CELLS),
    ],
    ids=str,
)
def test_complex_equals_torch(case):
    check(case, edit=small_weights, threads=(1,))


class Calls(TorchDispatchMode):
    """Notes every op that reaches the dispatcher below autograd, with its tensors' dtypes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, torch.Tensor)]
        dtypes = {t.dtype for t in tensors if t.is_floating_point()}
        self.seen.append((func._schema.name, dtypes))
        return func(*args, **(kwargs or {}))


def calls_of(case):
    module, data = case.build(OURS), draw(case)
    with Calls() as calls:
        run(module, case, data)
    return calls.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_layers_run_on_the_compiled_op(cell, options, dtype):
    """One op forward and one backward per layer, in the very dtype, however long the sequence; of
    what backward is given only an LSTM's cell states are wider than 16 bits."""
    short, long = (calls_of(Case(cell, (t, 5, 6, 7), dtype, **options)) for t in (3, 40))
    for pass_ in ("forward", "backward"):
        dtypes = [d for name, d in long if name == f"gatedrnn::{cell}_{pass_}"]
        wide = dtype in LOW and cell == "lstm" and pass_ == "backward"
        expected = {dtype, torch.float32} if wide else {dtype}
        assert dtypes == [expected] * options.get("layers", 1), pass_
    if options.get("form") != "unsorted":  # packing itself works step by step
        assert [name for name, _ in short] == [name for name, _ in long]
    products = [name for name, _ in long if name in ("aten::mm", "aten::addmm", "aten::bmm")]
    assert not products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_cells_run_on_the_compiled_op(cell, dtype):
    seen = calls_of(Case(cell, (5, 6, 7), dtype))
    for pass_ in ("forward", "backward"):
        assert [d for name, d in seen if name == f"gatedrnn::{cell}_{pass_}"] == [{dtype}], pass_
