"""Whole modules through the CUDA bindings, their kernels emulated, on CPU tensors.

Torch's own result is torch.nn's on the CPU in the same dtype. It has no TF32 there: such products
are held to the bound that the tolerance rule makes of TF32's digits, which are float16's. The
second half of this file gives the suite's contract tests CUDA's ops in the place of the CPU's.
"""

from dataclasses import replace
from itertools import chain, product

import emulated
import pytest
import test_autograd_contract
import test_bad_input
import test_cells
import test_cells_contract
import test_dropout
import test_dtypes
import test_forward_contract
import test_func
import test_gradients
import test_layers
import test_packed
import test_processes
import test_vmap
import torch
from cuda_cases import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, MODES, TF32, precision, shifted
from equivalence import CELLS, LAYERS, LAYOUTS, Case, Trial, forward, lay_out, run, together
from helpers import hidden, layers, pair, tensors
from test_gradcheck import by_module, flat
from tolerance import error, hold, widened
from torch.autograd import gradcheck, gradgradcheck

import gatedrnn
from gatedrnn import raw

# Multiprocessors: small batches get narrow tiles where there are many, and wide ones where one is.
NARROW, WIDE = emulated.MULTIPROCESSORS, 1
MOST_ROWS = 3000  # that all draws of a case have together
every_cell = pytest.mark.parametrize("cell", LAYERS)
every_mode = pytest.mark.parametrize("mode", MODES, ids=str)


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    """CUDA's ops, strict float32 and step kernels unless a test says otherwise."""
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")
    with precision(FLOAT32), emulated.cuda():
        yield


class EmulatedTrial(Trial):
    """A trial whose modules of ours, and no others, run in a mode on emulated kernels."""

    def __init__(self, case, mode=FLOAT32, edit=None, multiprocessors=NARROW):
        super().__init__(replace(case, dtype=mode.dtype), edit)
        self.mode, self.multiprocessors = mode, multiprocessors

    def run(self, wrt=None, outputs=None):
        with precision(self.mode), emulated.cuda(self.multiprocessors):
            return super().run(wrt, outputs)


def check(case, mode=FLOAT32, multiprocessors=NARROW, edit=None, outputs=None):
    """The tolerance rule over several draws together: one of torch's results may happen to be
    almost exact."""
    rows = case.size[0] * (1 if case.is_cell else case.size[1])
    draws = min(max(4, 64 // case.size[-1]), max(1, MOST_ROWS // max(1, rows)))
    trials = [EmulatedTrial(replace(case, seed=case.seed + 1000 * k), mode, edit, multiprocessors)
              for k in range(draws)]
    ours = together([trial.run(None, outputs) for trial in trials])
    peer = together([trial.peer(outputs) for trial in trials])
    oracle = together([trial.oracle(outputs) for trial in trials])
    hold(ours, peer, oracle, mode.judged_as, case.gates, f"in {mode}")


# Numbers and gradients

# (T, B, I, H): one tile of sequences or units, a part of one, and several; odd and even widths.
SIZES = [
    (1, 1, 1, 1), (2, 17, 33, 1), (3, 1, 5, 100), (4, 16, 8, 32), (2, 65, 5, 33), (6, 3, 64, 17),
    (1, 70, 1, 40), (3, 5, 7, 65),
]
SIZE_CASES = [
    (Case(cell, size), mode, (NARROW, WIDE)[(k + m) % 2])
    for k, size in enumerate(SIZES) for m, mode in enumerate(MODES) for cell in LAYERS
    if mode is not FLOAT64 or k in (0, 4, 5)  # its oracle works without BLAS
]


@pytest.mark.parametrize(
    ("case", "mode", "multiprocessors"),
    [pytest.param(*c, id=f"{c[0]}-{c[1]}-{'wide' if c[2] == WIDE else 'narrow'}")
     for c in SIZE_CASES])
def test_sizes(case, mode, multiprocessors):
    check(case, mode, multiprocessors)


OPTIONS = [
    {"layers": 2, "bias": False},
    {"layers": 2, "bidirectional": True, "batch_first": True},
    {"bidirectional": True, "layers": 2, "form": "unsorted"},
    {"states": False},
    {"form": "sorted", "bidirectional": True, "batch_first": True, "states": False},
    {"form": "unsorted", "bias": False},
    {"form": "unbatched", "bidirectional": True},
]
PROJECTIONS = [
    {"proj": 1},
    {"proj": 5, "layers": 2, "bias": False},
    {"proj": 9, "layers": 2, "bidirectional": True, "form": "unsorted"},
    {"proj": 4, "batch_first": True, "form": "sorted", "states": False},
]
OPTION_CASES = [
    (Case(cell, (5, 1 if options.get("form") == "unbatched" else 6, 7, 18), **options), mode)
    for mode in MODES for cell in LAYERS
    for options in (OPTIONS + PROJECTIONS if cell == "lstm" else OPTIONS)
]


@pytest.mark.parametrize(("case", "mode"),
                         [pytest.param(*c, id=f"{c[0]}-{c[1]}") for c in OPTION_CASES])
def test_options(case, mode):
    check(case, mode)


PERSISTENT_MODES = (TF32, FLOAT32, FLOAT16, BFLOAT16)
PERSISTENT_CASES = [
    Case(cell, size, **options) for cell in LAYERS
    for size, options in [((2, 17, 5, 1), {}), ((6, 3, 64, 17), {}), ((3, 5, 7, 130), {}),
                          *(((5, 6, 7, 18), options) for options in (OPTIONS[0], OPTIONS[1]))]
]


@pytest.mark.parametrize("mode", PERSISTENT_MODES, ids=str)
@pytest.mark.parametrize("case", PERSISTENT_CASES, ids=str)
def test_persistent_kernels(case, mode, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "persistent")
    check(case, mode)


@pytest.mark.parametrize("mode", PERSISTENT_MODES, ids=str)
@every_cell
def test_kernels_of_the_grid(cell, mode, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "grid")
    check(Case(cell, (3, 11, 7, 130), bidirectional=True, batch_first=True), mode)


# Whole stacks in one launch forward, and what keeps layers apart.
TOGETHER = [
    Case(cell, size, layers=layers, **options) for cell in LAYERS
    for size, layers, options in [
        ((4, 6, 7, 18), 2, {"bias": False}), ((6, 3, 64, 64), 3, {"batch_first": True}),
        ((3, 17, 1, 130), 4, {"states": False}), ((5, 1, 7, 33), 2, {"form": "unbatched"}),
    ]
]
APART = [
    Case("gru", (4, 6, 7, 18)), Case("gru", (1, 6, 7, 18), layers=2),
    Case("lstm", (4, 6, 7, 18), layers=5), Case("gru", (4, 6, 7, 18), layers=2, form="sorted"),
    Case("lstm", (4, 6, 7, 18), layers=2, bidirectional=True),
    Case("lstm", (4, 6, 7, 18), layers=2, proj=5), Case("gru", (4, 2, 7, 257), layers=2),
]


def calls_together(trial, monkeypatch):
    """How often a run has walked a stack in one launch."""
    calls, run = [], raw.stack_forward
    with monkeypatch.context() as patch:
        patch.setattr(raw, "stack_forward", lambda *a: calls.append(run(*a)) or calls[-1])
        trial.run(outputs=("output",))
    return sum(found is not None for found in calls)


@pytest.mark.parametrize("mode", (TF32, FLOAT16, BFLOAT16), ids=str)
@pytest.mark.parametrize("case", TOGETHER, ids=str)
def test_layers_at_the_same_time(case, mode, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
    assert calls_together(EmulatedTrial(case, mode), monkeypatch) == 1
    check(case, mode)


@pytest.mark.parametrize("case", APART, ids=str)
def test_layers_that_stay_apart(case, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
    assert calls_together(EmulatedTrial(case, FLOAT16), monkeypatch) == 0


@every_cell
def test_layers_are_walked_together_by_the_plan(cell, monkeypatch):
    """Where it is predicted to be faster, and where no dropout comes between."""
    monkeypatch.delenv("GATEDRNN_CUDA_KERNEL")
    case = Case(cell, (90, 3, 5, 33), layers=2)
    assert calls_together(EmulatedTrial(case, TF32), monkeypatch) == 1
    assert calls_together(EmulatedTrial(case, FLOAT32), monkeypatch) == 0
    assert calls_together(EmulatedTrial(case, TF32, multiprocessors=1), monkeypatch) == 0
    with precision(TF32), emulated.cuda():
        module = dict(gru=gatedrnn.GRU, lstm=gatedrnn.LSTM)[cell](5, 33, 2, dropout=0.5)
        x = torch.randn(90, 3, 5)
        before = emulated.ops.cuda_launches()
        with torch.no_grad():
            module(x)
            apart = emulated.ops.cuda_launches() - before
            module.eval()(x)
        assert emulated.ops.cuda_launches() - before - apart < apart


@every_cell
def test_second_derivatives_of_layers_that_were_walked_together(cell, monkeypatch):
    """And all else that only a layer's own Function gives."""
    case = Case(cell, (4, 3, 5, 9), layers=2)
    results = []
    for kernel in ("wavefront", "step"):
        monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", kernel)
        trial = EmulatedTrial(case, TF32)
        with precision(TF32), emulated.cuda():
            x = trial.data.inputs["x"].clone().requires_grad_()
            first, = torch.autograd.grad(trial.ours(x)[0].square().sum(), x, create_graph=True)
            results.append([first, *torch.autograd.grad(first.square().sum(), [
                x, *trial.ours.parameters()])])
    for together_, apart in zip(*results, strict=True):
        torch.testing.assert_close(together_, apart, rtol=2e-2, atol=2e-2)


@every_cell
def test_a_stack_whose_lower_layer_is_frozen(cell, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
    module = dict(gru=gatedrnn.GRU, lstm=gatedrnn.LSTM)[cell](5, 9, 2)
    for name, p in module.named_parameters():
        p.requires_grad_("l1" in name)
    with precision(TF32), emulated.cuda():
        module(torch.randn(4, 3, 5))[0].sum().backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} == {
        n for n, p in module.named_parameters() if "l1" in n}


@every_cell
def test_operands_in_two_parts(cell, monkeypatch):
    """Strict float32 where there are more sequences than room for a cluster each."""
    case = Case(cell, (3, 5, 7, 18), layers=2, bidirectional=True, batch_first=True)
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "persistent")
    results = [EmulatedTrial(case, multiprocessors=m).run(wrt=())["output"] for m in (NARROW, WIDE)]
    assert not torch.equal(*results)
    check(case, multiprocessors=WIDE)


@every_cell
def test_real_tf32_can_be_told(cell, monkeypatch):
    """The step kernels' numbers, forward and backward, where persistent ones would be taken."""
    trial = EmulatedTrial(Case(cell, (30, 6, 7, 18)), TF32)
    of_step = trial.run()
    monkeypatch.delenv("GATEDRNN_CUDA_KERNEL")
    scaled = trial.run()
    monkeypatch.setenv("GATEDRNN_CUDA_TF32", "real")
    real = trial.run()
    assert not torch.equal(scaled["output"], of_step["output"])
    for name, value in real.items():
        assert torch.equal(value, of_step[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True},
                                     {"form": "unsorted"}], ids=str)
@pytest.mark.parametrize("mode", [FLOAT32, FLOAT16], ids=str)
@every_cell
def test_strides_of_inputs_states_and_cotangents(cell, mode, options, layout):
    check(Case(cell, (4, 6, 5, 17), layout=layout, **options), mode)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 33), (17, 8, 20)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@every_mode
def test_cells_in_every_mode(cell, size, mode):
    for options in ({}, {"bias": False}, {"states": False}):
        check(Case(cell, size, **options), mode)


@pytest.mark.parametrize("outputs", [("output",), ("h_n",), ("output", "h_n")], ids="+".join)
@pytest.mark.parametrize("case", [
    Case("gru", (4, 3, 5, 17), layers=2, bidirectional=True),
    Case("gru", (4, 3, 5, 17), form="unsorted"), Case("lstm", (4, 3, 5, 17), form="unsorted"),
    Case("lstm", (4, 3, 5, 17), proj=6),
], ids=str)
def test_gradients_arrive_on_some_results_alone(case, outputs):
    check(case, outputs=outputs)


@pytest.mark.parametrize("case", [
    Case("gru", (4, 3, 5, 17)), Case("lstm", (4, 3, 5, 17)),
    Case("lstm", (4, 3, 5, 9), proj=3, bias=False), Case("gru", (4, 3, 5, 9), form="unsorted"),
], ids=str)
@pytest.mark.parametrize("mode", [FLOAT32, FLOAT16], ids=str)
def test_a_gradient_does_not_depend_on_which_others_are_wanted(case, mode):
    trial = EmulatedTrial(case, mode)
    everything = trial.run()
    for wrt in test_gradients.subsets([*trial.data.inputs, *dict(trial.ours.named_parameters())]):
        for name, value in trial.run(wrt).items():
            assert torch.equal(value, everything[name]), (name, wrt)


@every_cell
@every_mode
def test_memory_that_is_not_aligned(cell, mode):
    """Every tensor begins one element behind a border: no access may be wider than an element."""
    trial = EmulatedTrial(Case(cell, (3, 17, 8, 32), bidirectional=True), mode)
    plain = trial.run()
    for parameter in trial.ours.parameters():
        parameter.data = shifted(parameter)
    inputs = {n: shifted(v).requires_grad_() for n, v in trial.data.inputs.items()}
    with precision(mode):
        results = forward(trial.ours, trial.case, trial.data, inputs)
        gradients = torch.autograd.grad(
            list(results.values()), [*inputs.values(), *trial.ours.parameters()],
            [shifted(trial.data.cotangents[n]) for n in results])
    names = chain(results, (f"grad {n}" for n in inputs),
                  (f"grad {n}" for n, _ in trial.ours.named_parameters()))
    for name, value in zip(names, chain(results.values(), gradients), strict=True):
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("layout", ["sliced", "stepped", "transposed"])
@every_cell
def test_strides_of_weights(cell, layout):
    proj = {"proj": 5} if cell == "lstm" else {}
    trial = EmulatedTrial(Case(cell, (4, 3, 5, 17), layers=2, bidirectional=True, **proj))
    plain = trial.run()
    for parameter in trial.ours.parameters():
        parameter.data = lay_out(parameter, layout)
    for name, value in trial.run().items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.parametrize("case", [
    *(Case(cell, (3, 17, 20, 65), dtype, layers=2, bidirectional=True, form=form)
      for cell in LAYERS for dtype in (torch.float32, torch.float64)
      for form in ("padded", "unsorted")),
    Case("lstm", (3, 17, 20, 33), bidirectional=True, proj=7),
    *(Case(cell, (17, 20, 33)) for cell in CELLS),
], ids=str)
def test_same_numbers_as_the_kernels_of_the_cpu(case, monkeypatch):
    """No oracle comes between two implementations that share nothing but the cells' equations."""
    trial = Trial(case)
    ours = trial.run()
    with monkeypatch.context() as patch:
        patch.setattr(raw, "_ops", torch.ops.gatedrnn)
        patch.setattr(raw, "_emulated", False)
        cpu = trial.run()
    for name, value in ours.items():
        a, b = widened(value), widened(cpu[name])
        limit = 8 * torch.finfo(case.dtype).eps * max(1, abs(b).max())
        assert error(a, b).max() <= limit, name


@every_cell
@every_mode
def test_wide_tiles_compute_what_narrow_ones_do(cell, mode):
    """Their sums over k have another order, which at such a depth shows in some bit."""
    case = Case(cell, (3, 20, 5, 200), bidirectional=True)
    if mode is FLOAT64:
        case = replace(case, size=(3, 20, 5, 100))
    narrow, wide = (EmulatedTrial(case, mode, None, n).run() for n in (NARROW, WIDE))
    assert mode.dtype.itemsize == 2 or not torch.equal(narrow["output"], wide["output"])
    digits = (1 if mode.judged_as.itemsize == 2 else 16) * torch.finfo(mode.judged_as).eps
    for name, value in narrow.items():
        limit = digits * max(1.0, float(wide[name].abs().max()))
        assert float((value - wide[name]).abs().max()) <= limit, name


@pytest.mark.parametrize("form", ["padded", "unsorted"])
@every_cell
@every_mode
def test_bit_equal_twice_without_grad_and_in_memory_full_of_nan(cell, mode, form):
    """Nothing is read that this very call has not written."""
    proj = {"proj": 5} if cell == "lstm" else {}
    case = Case(cell, (4, 17, 5, 33), layers=2, bidirectional=True, form=form, **proj)
    trial = EmulatedTrial(case, mode)
    first, second = trial.run(), trial.run()
    torch.use_deterministic_algorithms(True)  # torch then fills what it allocates
    try:
        assert torch.empty(9).new_empty(9).isnan().all()
        filled = trial.run()
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.no_grad(), precision(mode):
        plain = forward(trial.ours, trial.case, trial.data, trial.data.inputs)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value, filled[name]), f"{name} depends on what was in memory"
    for name, value in plain.items():
        assert torch.equal(value, first[name]), f"{name} with and without grad"


@every_cell
@every_mode
def test_nan_spreads_within_its_sample_alone(cell, mode):
    """Tiles hold many samples: what is beside a NaN keeps its bits."""
    def put(module, data):
        data.inputs["x"][2, 1, 0] = float("nan")

    case = Case(cell, (4, 17, 4, 33))
    clean, results = EmulatedTrial(case, mode).run(), EmulatedTrial(case, mode, put).run()
    others = [b for b in range(17) if b != 1]
    assert results["output"][2:, 1].isnan().all() and results["h_n"][:, 1].isnan().all()
    assert torch.equal(results["output"][:2], clean["output"][:2])
    for name in ("output", "grad x"):
        assert torch.equal(results[name][:, others], clean[name][:, others]), name
    assert results["grad weight_hh_l0"].isnan().any()


# Precision


@pytest.mark.parametrize("zero", ["x", "h0"])
@every_cell
def test_switch_reaches_both_products_of_the_forward(cell, zero):
    """In one step, from zeros, the other product is exact."""
    def put(module, data):
        data.inputs[zero].zero_()

    case = Case(cell, (1, 5, 9, 20))
    tf32, strict = (EmulatedTrial(case, mode, put).run(wrt=()) for mode in (TF32, FLOAT32))
    assert not torch.equal(tf32["output"], strict["output"])


@every_cell
def test_switch_reaches_every_product_of_the_backward(cell):
    """One step's gates' gradients, and so the biases', take no product; all others one."""
    trial = Trial(Case(cell, (1, 5, 9, 20)))
    for value in trial.data.inputs.values():
        value.requires_grad_()
    results = forward(trial.ours, trial.case, trial.data, trial.data.inputs)
    leaves = {**trial.data.inputs, **dict(trial.ours.named_parameters())}
    cotangents = [trial.data.cotangents[n] for n in results]
    found = []
    for mode in (TF32, FLOAT32):
        with precision(mode):
            found.append(torch.autograd.grad(list(results.values()), list(leaves.values()),
                                             cotangents, retain_graph=True))
    for name, tf32, strict in zip(leaves, *found, strict=True):
        assert torch.equal(tf32, strict) == name.startswith(("bias", "c0")), name


@every_cell
def test_small_gradients_of_float16_are_not_lost(cell):
    """Those of the gates lie where float16 has two or three bits left, their sums do not."""
    def shrink(module, data):
        for cotangent in data.cotangents.values():
            cotangent.fill_(2.0**-20)

    trial = EmulatedTrial(Case(cell, (20, 65, 5, 17), torch.float16), FLOAT16, shrink)
    ours, oracle = trial.run(), trial.oracle()
    for name in (n for n in ours if n.startswith(("grad weight", "grad bias"))):
        largest = float(oracle[name].abs().max())
        assert largest > torch.finfo(torch.float16).tiny
        assert float((ours[name] - oracle[name]).abs().max()) <= 2.0**-10 * largest, name


@pytest.mark.parametrize("mode", [TF32, FLOAT32, BFLOAT16], ids=str)
@every_cell
def test_large_states_stay_finite(cell, mode):
    """An operand that is rounded must not overflow where float32 does not."""
    def enlarge(module, data):
        data.inputs["h0"] *= 1e30

    results = EmulatedTrial(Case(cell, (3, 17, 5, 33)), mode, enlarge).run(wrt=())
    assert all(value.isfinite().all() for value in results.values())


# How the ops are called


def calls_of(monkeypatch, case):
    """(op, arguments) of a forward and a backward pass."""
    seen, call = [], raw._call

    def watch(op, arguments):
        seen.append((op, arguments))
        return call(op, arguments)

    monkeypatch.setattr(raw, "_call", watch)
    trial = Trial(case)
    run(trial.ours, case, trial.data)
    assert len(seen) == 2 * case.layers
    return seen


OP_CASES = [
    Case("gru", (4, 3, 5, 6), bidirectional=True), Case("gru", (4, 3, 5, 6), form="sorted"),
    Case("lstm", (4, 3, 5, 6), proj=2, form="sorted"),
    Case("lstm", (4, 3, 5, 6), torch.bfloat16, bias=False),
    Case("gru", (4, 3, 5, 6), torch.float16), Case("gru_cell", (3, 5, 6), torch.float64),
    Case("lstm_cell", (3, 5, 6), torch.bfloat16),
]
every_op = pytest.mark.parametrize("case", OP_CASES, ids=str)


@every_op
def test_ops_keep_to_their_schemas_and_fake_kernels(case, monkeypatch):
    for op, arguments in calls_of(monkeypatch, case):
        given = torch.utils._pytree.tree_map(
            lambda a: a.detach() if isinstance(a, torch.Tensor) else a, arguments)
        torch.library.opcheck(op, given, test_utils=("test_schema", "test_faketensor"))


@every_cell
@pytest.mark.parametrize("train", [False, True])
def test_ops_of_stacks(cell, train):
    """The same, and what the ops themselves refuse."""
    x = torch.randn(4, 3, 5, dtype=torch.float16)
    states = [torch.zeros(2, 3, 6, dtype=torch.float16) for _ in range(1 + (cell == "lstm"))]
    module = dict(gru=gatedrnn.GRU, lstm=gatedrnn.LSTM)[cell](5, 6, 2, dtype=torch.float16)
    weights = [p.detach() for p in module.parameters()]
    op = getattr(emulated.ops, f"{cell}_stack_forward").default

    def call(x=x, states=states, weights=weights):
        return op(x, *states, weights, True, train, False)

    with pytest.raises(RuntimeError, match="no kernel takes these layers at the same time"):
        call()  # step kernels are asked for
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
        torch.library.opcheck(op, (x, *states, weights, True, train, False),
                              test_utils=("test_schema", "test_faketensor"))
        assert emulated.ops.takes_stack(x, states[0], 2 + len(states), False)
        for wrong, words in [
            ({"weights": weights[1:]}, "wrong number of weights"),
            ({"weights": [*weights[:4], weights[0], *weights[5:]]}, "w_ih of shape"),
            ({"x": x[0]}, "three dimensions"), ({"x": x.double()}, "no kernel takes these layers"),
            ({"states": [s[:, :2] for s in states]}, "batch of 2, got 3"),
            *([({"weights": [*weights[:4], weights[1][:6], *weights[4:], weights[1][:6]]},
                "with a projection")] if cell == "lstm" else []),
        ]:
            with pytest.raises(RuntimeError, match=words):
                call(**wrong)


def narrower(t):
    return t[..., :-1]


def wider(t):
    return torch.cat([t, t[..., -1:]], -1)


def of_another_dtype(t):
    return t.float() if t.dtype == torch.float64 else t.double()


def in_a_list(value, k, change):
    return [change(t) if i == k else t for i, t in enumerate(value)]


def one_wrong(arguments, change):
    """The arguments with one tensor changed, for each of them."""
    for k, a in enumerate(arguments):
        if isinstance(a, torch.Tensor):
            yield (*arguments[:k], change(a), *arguments[k + 1 :])
        elif isinstance(a, list):
            for i in range(len(a)):
                yield (*arguments[:k], in_a_list(a, i, change), *arguments[k + 1 :])


@every_op
def test_wrong_tensors_are_refused(case, monkeypatch):
    """Each tensor of each op, in a wrong shape and in a wrong dtype: a wrong one is never read."""
    calls = calls_of(monkeypatch, case)
    for (op, arguments), change in product(calls, (narrower, wider, of_another_dtype)):
        wrong = list(one_wrong(arguments, change))
        assert len(wrong) >= 4
        for given in wrong:
            with pytest.raises(RuntimeError) as caught:
                op(*given)
            text = str(caught.value)
            assert "gatedrnn: " in text and "\n" not in text, text
        op(*arguments)


@pytest.mark.parametrize(("case", "forward_launches", "backward_launches"), [
    *((Case(cell, (steps, 3, 5, 6), layers=depth, bidirectional=both), depth * steps,
       depth * (steps + 1))
      for cell in LAYERS for steps in (1, 7) for depth in (1, 2) for both in (False, True)),
    (Case("lstm", (7, 3, 5, 6), proj=2), 14, 16),
    (Case("lstm", (7, 3, 5, 6), proj=2, bidirectional=True, form="unsorted"), 14, 16),
    *((Case(cell, (3, 5, 6)), 1, 1) for cell in CELLS),
], ids=str)
def test_launches(case, forward_launches, backward_launches):
    trial, count = Trial(case), emulated.ops.cuda_launches
    for x in trial.data.inputs.values():
        x.requires_grad_()
    before = count()
    results = forward(trial.ours, case, trial.data, trial.data.inputs)
    between = count()
    torch.autograd.backward(list(results.values()), [trial.data.cotangents[n] for n in results])
    assert (between - before, count() - between) == (forward_launches, backward_launches)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_copies_no_batch_first_input(dtype, grad):
    m = gatedrnn.LSTM(5, 6, batch_first=True, proj_size=2, dtype=dtype)
    x, hx = torch.randn(3, 4, 5, dtype=dtype), hidden(m, 3, dtype=dtype)

    def copies(given):
        with torch.set_grad_enabled(grad), torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            m(given, hx)
        names = [event.name for event in profile.events()]
        assert "gatedrnn_emulated::lstm_forward" in names
        return sum(name == "aten::copy_" for name in names)

    assert copies(x) == 0
    columns_apart = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert copies(columns_apart) == 1


@layers
def test_modules_run_on_the_ops_of_cuda(theirs, ours):
    """So that none of the tests below passes by the kernels of the CPU."""
    m = ours(3, 4)
    before = emulated.ops.cuda_launches()
    x = torch.randn(5, 2, 3)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        m.to(dtype)(x.to(dtype))
    assert emulated.ops.cuda_launches() - before == 4 * 5


@layers
def test_reference_takes_over_where_no_kernel_follows(theirs, ours):
    """Forward mode, complex numbers: no launch, and the kernels' values."""
    m, x = ours(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    expected = next(tensors(m(x)))
    before = emulated.ops.cuda_launches()
    value, _ = torch.func.jvp(lambda v: m(v)[0], (x,), (torch.ones_like(x),))
    complex_ = ours(3, 4, dtype=torch.complex128)
    complex_.load_state_dict({n: p.to(torch.complex128) for n, p in m.state_dict().items()})
    others = value, complex_(x.to(torch.complex128))[0].real
    assert emulated.ops.cuda_launches() == before
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-12, atol=1e-13)


# Derivatives

SMALL = [
    Case("gru", (3, 2, 2, 3), torch.float64), Case("lstm", (2, 2, 2, 3), torch.float64, proj=2),
    Case("gru", (3, 3, 2, 2), torch.float64, form="unsorted"),
    Case("lstm", (2, 3, 2, 3), torch.float64, bidirectional=True, proj=1, form="unsorted"),
    Case("gru", (2, 2, 2, 2), torch.float64, layers=2, bidirectional=True),
    Case("gru_cell", (2, 3, 2), torch.float64), Case("lstm_cell", (2, 3, 2), torch.float64),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_first_and_second_derivatives(case):
    assert gradcheck(*flat(case, by_module), fast_mode=case.bidirectional)
    assert gradgradcheck(*flat(case, by_module), fast_mode=True)


# Offsets beyond 31 bits


@pytest.mark.parametrize("far", ["time", "batch"])
@layers
def test_cotangent_whose_offsets_pass_31_bits(theirs, ours, far):
    """The kernels of a step read the output's gradient with the strides that it comes with."""
    a, b = pair(theirs, ours, 2, 4)
    whole = test_processes.huge((3 << 30,), torch.zeros(1))
    strides = {"time": (1 << 30, 4, 1), "batch": (4, 1 << 30, 1)}[far]
    cotangent = whole.as_strided((3, 2, 4) if far == "time" else (2, 3, 4), strides)
    cotangent.copy_(torch.randn(cotangent.shape))
    x = torch.randn(*cotangent.shape[:2], 2)
    expected, found = (torch.autograd.grad(m(x)[0], list(m.parameters()), d)
                       for m, d in ((a, cotangent.clone()), (b, cotangent)))
    for p, q in zip(found, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)


# The suite's own tests of modules


def borrowed(module, *names):
    prefix = module.__name__
    return {f"{prefix}_{name}": getattr(module, f"test_{name}") for name in names}


globals().update(
    borrowed(
        test_forward_contract, "results_gradients_and_layout", "requires_grad_of_results",
        "default_states_take_the_dtype_of_the_input",
        "nothing_shares_memory_and_nothing_is_written",
        "last_output_is_the_final_state_bit_for_bit",
        "input_and_states_of_any_layout", "empty_batch", "poisoned_weight_and_state",
        "poison_stays_in_its_sample_and_time_and_goes_where_torch_lets_it_go",
        "dtypes_forward_and_backward", "meta_in_meta_out", "fake_tensors", "inference_mode",
        "state_carried_from_call_to_call_equals_one_long_call",
    )
    | borrowed(
        test_cells_contract, "results_and_gradients", "dtypes", "empty_sizes", "layouts",
        "nothing_is_written_and_nothing_shared", "loss_on_one_state_alone", "one_bias_missing",
        "poison_goes_where_torch_lets_it_go", "grad_and_no_grad_are_bit_equal",
        "a_cell_in_a_loop_is_the_layer", "meta",
    )
    | borrowed(test_cells, "empty")
    | borrowed(
        test_packed, "dtypes", "each_sample_is_as_if_alone", "poison_stays_in_its_sample",
        "padding_is_never_read_and_gets_no_gradient", "nothing_is_written_and_nothing_shared",
        "packed_data_of_any_layout", "requires_grad_of_data_alone",
        "bad_packing_is_refused_in_clear_words", "one_wrong_state_of_an_lstm",
    )
    | borrowed(
        test_autograd_contract, "loss_on_every_subset_of_the_results",
        "loss_on_the_first_layers_state_leaves_zeros_not_none", "loss_on_single_elements",
        "everything_but_one_frozen_and_one_frozen", "gradients_add_up_over_calls",
        "retained_graph_repeats_bit_for_bit_and_a_freed_one_refuses",
        "gradients_share_no_memory", "in_place_change_before_backward_is_refused",
        "final_states_may_be_changed_in_place", "output_may_be_changed_in_place",
        "gradient_penalty", "gradient_penalty_of_a_packed_stack", "third_derivatives",
        "create_graph_gives_the_same_first_gradients_and_keeps_the_graph",
    )
    | borrowed(test_func, "grad_vjp_and_jacrev", "forward_mode", "jacobian_through_packing")
    | borrowed(
        test_vmap, "shared_weights_run_one_kernel_over_the_folded_batch",
        "any_axis_of_input_and_states", "per_sample_gradients", "per_sample_gradients_of_stacks",
        "ensembles", "packed_samples", "second_derivatives_per_sample",
    )
    | borrowed(
        test_dropout, "same_masks_as_torch", "same_masks_with_projections",
        "same_masks_in_other_dtypes", "p_of_one_gives_zeros_and_finite_gradients",
        "masks_survive_checkpointing",
    )
    | borrowed(
        test_bad_input, "refused_in_the_words_of_torch", "refused_in_clear_words",
        "the_call_after_a_refused_one_is_right",
    )
    | borrowed(test_dtypes, "state_is_carried_in_float32")
    | borrowed(test_layers, "empty_batch")
    | borrowed(
        test_processes, "input_whose_offsets_pass_31_bits",
        "weights_and_states_whose_offsets_pass_31_bits",
    )
)
