"""Between torch and the CUDA kernels: what the binary needs from outside, the matrix products, the
precision switch, layouts of the input, and what is said where something is missing. What needs
kernels runs them emulated, on CPU tensors."""

import itertools
import shutil
import subprocess

import emulated
import numpy as np
import pytest
import torch
from helpers import layers
from torch._subclasses import FakeTensorMode

import gatedrnn
from gatedrnn import __main__, ops, raw

LOW = (torch.float16, torch.bfloat16)
SYMBOLS = {"aoti_torch_get_current_cuda_stream", "torch_get_current_cuda_blas_handle",
           "cublasGemmEx_64", "cublasGetMathMode", "cublasSetMathMode", "cublasGetStatusString"}
needs_cuda_build = pytest.mark.skipif(not raw.HAS_CUDA, reason="built without CUDA kernels")


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_symbols_of_cuda_are_weak():
    """So that the binary loads into a torch that is not built for CUDA."""
    nm = subprocess.run(["nm", "-D", "--undefined-only", raw.extension_file()],
                        capture_output=True, text=True, check=True)
    kinds = {name: kind for kind, name in (line.split()[-2:] for line in nm.stdout.splitlines())}
    foreign = {name: kind for name, kind in kinds.items()
               if name in SYMBOLS or name.startswith(("cu", "_ZN2at4cuda", "_ZN3c104cuda"))}
    assert set(foreign) == (SYMBOLS if raw.HAS_CUDA else set())
    assert set(foreign.values()) <= {"w"}


def test_report_tells_the_architectures():
    line = next(line for line in __main__.report().splitlines() if line.startswith("CUDA kernels"))
    assert (raw.cuda_architectures() or "not built") in line


# ---------------------------------------------------------------- matrix products

TYPES = [(t, t, False) for t in (torch.float32, torch.float64, *LOW)]
TYPES += [(t, torch.float32, False) for t in LOW] + [(torch.float32, torch.float32, True)]


def matrix(rows, columns, dtype, fill):
    """[rows, columns] within a wider buffer of NaN."""
    buffer = torch.full((rows, columns + 3), float("nan"), dtype=dtype)
    buffer[:, :columns] = fill
    return buffer[:, :columns]


def product(a, b, c, K, a_transposed=False, b_transposed=False, accumulate=False, tf32=False):
    before = emulated.ops.cublas_math_mode()
    emulated.ops.gemm(a, a_transposed, b, b_transposed, c, K, accumulate, tf32)
    assert emulated.ops.cublas_math_mode() == before


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (4, 1, 7), (1, 6, 2)], ids=str)
@pytest.mark.parametrize(("type", "result", "tf32"), TYPES, ids=str)
def test_product_of_integers_is_exact(shape, type, result, tf32):
    M, N, K = shape
    generator = np.random.default_rng(1)
    for a_transposed, b_transposed, accumulate in itertools.product([False, True], repeat=3):
        a, b, c = (generator.integers(-3, 4, size) for size in ((M, K), (K, N), (M, N)))
        expected = a @ b + (c if accumulate else 0)
        ours = [matrix(*(m.T if flip else m).shape, type, torch.from_numpy(m.T if flip else m))
                for m, flip in ((a, a_transposed), (b, b_transposed))]
        out = matrix(M, N, result, torch.from_numpy(c) if accumulate else float("nan"))
        product(*ours, out, K, a_transposed, b_transposed, accumulate, tf32)
        np.testing.assert_array_equal(out.double().numpy(), expected)
        rest = out.as_strided((M, 3), out.stride(), N)
        assert rest.isnan().all(), "written beyond a row"


def test_rounding_to_tf32_is_the_callers_choice():
    """Whatever mode torch's own matrix products have left the handle in."""
    x = torch.tensor([[1 + 2**-12]])
    one, out = torch.ones(1, 1), torch.empty(1, 1)
    for tf32, expected in ((False, 1 + 2**-12), (True, 1)):
        product(x, one, out, 1, tf32=tf32)
        assert out.item() == expected


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sums_of_low_precision_are_of_float32(dtype):
    ones = torch.ones(4096, 1, dtype=dtype)
    out = torch.empty(1, 1, dtype=dtype)
    product(ones, ones, out, 4096, a_transposed=True)
    assert out.item() == 4096


def test_empty_products():
    a, b, c = torch.ones(2, 3), torch.ones(3, 4), torch.full((2, 4), 5.0)
    product(a[:0], b, c[:0], 3)
    product(a, b, c, 0, accumulate=True)
    assert (c == 5).all()
    with pytest.raises(RuntimeError, match="product over nothing"):
        product(a, b, c, 0)


def test_error_of_cublas_is_named():
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_NOT_SUPPORTED"):
        product(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1).half(), 1)


# ---------------------------------------------------------------- the precision switch


@pytest.fixture
def switches():
    backends = torch.backends
    yield backends
    backends.fp32_precision = backends.cudnn.fp32_precision = "none"
    backends.cudnn.allow_tf32 = True
    assert backends.cudnn.rnn.fp32_precision == backends.cudnn.conv.fp32_precision == "tf32"


def tf32_of(monkeypatch, *arguments):
    """What a layer's op is told, forward and backward."""
    seen, run = [], raw._run

    def watch(op, *given):
        seen.append([value for value in given if isinstance(value, bool)][-1])
        return run(op, *given)

    monkeypatch.setattr(raw, "_run", watch)
    y = gatedrnn.GRU(2, 3, dtype=arguments[0].dtype)(*arguments)[0]
    y.sum().backward()
    assert len(seen) == 2 and seen[0] is seen[1]
    return seen[0]


def set_rnn(value):
    return lambda backends: setattr(backends.cudnn.rnn, "fp32_precision", value)


def inherit(owner, value):
    def apply(backends):
        backends.cudnn.rnn.fp32_precision = "none"
        owner(backends).fp32_precision = value
    return apply


def legacy(value):
    return lambda backends: setattr(backends.cudnn, "allow_tf32", value)


@pytest.mark.parametrize(("state", "expected"), [
    (lambda backends: None, True),
    (set_rnn("tf32"), True), (set_rnn("ieee"), False), (set_rnn("none"), False),
    (legacy(True), True), (legacy(False), False),
    (inherit(lambda b: b.cudnn, "tf32"), True), (inherit(lambda b: b.cudnn, "ieee"), False),
    (inherit(lambda b: b, "tf32"), True), (inherit(lambda b: b, "ieee"), False),
    (lambda b: setattr(b.cudnn.conv, "fp32_precision", "ieee"), True),
    (lambda b: setattr(b.cuda.matmul, "fp32_precision", "ieee"), True),
], ids=["default", "rnn=tf32", "rnn=ieee", "rnn=none", "allow_tf32", "not allow_tf32", "cudnn=tf32",
        "cudnn=ieee", "all=tf32", "all=ieee", "conv=ieee", "matmul=ieee"])
def test_switch_is_read_as_torch_reads_it(switches, monkeypatch, state, expected):
    matmul = switches.cuda.matmul.fp32_precision
    try:
        state(switches)
        assert (switches.cudnn.rnn.fp32_precision == "tf32") is expected
        with emulated.cuda():
            assert tf32_of(monkeypatch, torch.ones(2, 1, 2)) is expected
    finally:
        switches.cuda.matmul.fp32_precision = matmul


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
def test_switch_concerns_float32_alone(monkeypatch, dtype):
    with emulated.cuda():
        assert tf32_of(monkeypatch, torch.ones(2, 1, 2, dtype=dtype)) is False


def test_switch_does_not_concern_the_cpu(monkeypatch):
    assert tf32_of(monkeypatch, torch.ones(2, 1, 2)) is False


@layers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Dynamo's own
def test_compiled_layer_follows_the_switch(theirs, ours, switches):
    m, x = ours(3, 8), torch.randn(5, 2, 3)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    results = {}
    with emulated.cuda():
        for value in ("ieee", "tf32", "ieee"):
            switches.cudnn.rnn.fp32_precision = value
            results[value] = m(x)[0]
            assert torch.equal(compiled(x)[0], results[value]), value
    assert not torch.equal(results["ieee"], results["tf32"])


# ---------------------------------------------------------------- layouts, and what is wanted


def layouts(x):
    """(name, x) of the same values, differently laid out."""
    T, B, features = x.shape
    wide = x.new_zeros(T, B, features + 2)
    wide[..., :features] = x
    steps = x.new_zeros(2 * T, B, features)
    steps[::2] = x
    yield "time-major", x
    yield "batch-first", x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "columns apart", x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield "part of the columns", wide[..., :features]
    yield "part of the columns, batch-first", (
        wide.transpose(0, 1).contiguous().transpose(0, 1)[..., :features])
    yield "every other step", steps[::2]
    yield "unusual strides where a size is 1", x.as_strided(
        x.shape, [1 if n == 1 else k for n, k in zip(x.shape, x.stride(), strict=True)])


def results_of(m, x, *wanted):
    """The output and the gradients of `wanted`, by emulated kernels, of a fixed cotangent."""
    with emulated.cuda():
        y = m(x)[0]
        data = getattr(y, "data", y)
        cotangent = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        return [data, *torch.autograd.grad(y, wanted, cotangent.to(y.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("size", [(4, 3, 5), (1, 3, 5), (4, 1, 5), (3, 2, 1), (1, 1, 1)], ids=str)
def test_layout_of_the_input_does_not_matter(size, dtype):
    m = gatedrnn.LSTM(size[2], 4, bidirectional=True, proj_size=3, dtype=dtype)
    expected = None
    for name, x in layouts(torch.randn(size, dtype=dtype)):
        leaf = x.detach().requires_grad_()
        assert leaf.stride() == x.stride()
        found = results_of(m, leaf, leaf, *m.parameters())
        expected = expected or found
        assert all(map(torch.equal, found, expected)), name


@layers
def test_an_expanded_input(theirs, ours):
    m, row = ours(5, 4), torch.randn(3, 5)
    x = row.expand(6, 3, 5).requires_grad_()
    copy = x.detach().clone().requires_grad_()
    assert all(map(torch.equal, results_of(m, x, x, *m.parameters()),
                   results_of(m, copy, copy, *m.parameters())))


@layers
def test_only_what_is_wanted_is_computed_and_equally(theirs, ours):
    m, x = ours(5, 4, num_layers=2), torch.randn(6, 3, 5).requires_grad_()
    _, dx, *dweights = results_of(m, x, x, *m.parameters())
    assert torch.equal(results_of(m, x, x)[1], dx)
    assert all(map(torch.equal, results_of(m, x.detach(), *m.parameters())[1:], dweights))


@layers
def test_an_empty_batch(theirs, ours):
    m, x = ours(5, 4, bidirectional=True), torch.randn(6, 0, 5).requires_grad_()
    y, dx, *dweights = results_of(m, x, x, *m.parameters())
    assert y.shape == (6, 0, 8) and dx.shape == x.shape
    assert not any(d.count_nonzero() for d in dweights)


@layers
@pytest.mark.parametrize(("kernel", "least", "most"), [("step", 20, 28), ("persistent", 2, 3),
                                                     ("grid", 3, 4)])
def test_launches_of_a_layer(theirs, ours, monkeypatch, kernel, least, most):
    """A launch a step serves both directions, or one all steps; cuBLAS's and torch's own are not
    counted."""
    m, x = ours(5, 4, bidirectional=True), torch.randn(20, 3, 5)
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", kernel)
    with emulated.cuda():
        before = emulated.ops.cuda_launches()
        y = m(x)[0]
        between = emulated.ops.cuda_launches()
        y.sum().backward()
        after = emulated.ops.cuda_launches()
    assert least <= between - before <= most and least <= after - between <= most


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_states_of_16_bits_are_saved_as_they_are_carried(dtype):
    x, h = torch.randn(3, 2, 4, dtype=dtype), torch.zeros(1, 2, 5, dtype=dtype)
    weights = [w.data for w in gatedrnn.LSTM(4, 5, dtype=dtype).parameters()]
    y, _, _, gates, c = emulated.ops.lstm_forward(x, h, h, weights, True, None, True, False)
    assert (y.dtype, gates.dtype, c.dtype) == (dtype, dtype, torch.float32)


def test_wrong_types_are_refused():
    x, h = torch.randn(3, 2, 4), torch.zeros(1, 2, 5)
    weights = [w.data for w in gatedrnn.GRU(4, 5).parameters()]
    with pytest.raises(RuntimeError, match="no kernels for this dtype"):
        emulated.ops.gru_forward(x.cfloat(), h, weights, True, None, False, False)
    with pytest.raises(RuntimeError, match="no kernels for this dtype"):
        torch.ops.gatedrnn.gru_cell_forward(x[0].half(), h[0].half(), *weights, False)
    with pytest.raises(RuntimeError, match="w_ih has the wrong dtype"):
        emulated.ops.gru_forward(x.half(), h.half(), weights, True, None, False, False)


# ---------------------------------------------------------------- CUDA tensors without a GPU


def fake_layer(cls, dtype):
    gates = 3 if cls == "gru" else 4
    shapes = (gates * 4, 3), (gates * 4, 4), (gates * 4,), (gates * 4,)
    weights = [torch.empty(s, dtype=dtype, device="cuda") for s in shapes]
    return getattr(gatedrnn.functional, cls)(torch.empty(5, 2, 3, dtype=dtype, device="cuda"),
                                             weights)


@needs_cuda_build
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("cls", ["gru", "lstm"])
def test_cuda_tensors_are_traced(cls, dtype):
    with FakeTensorMode(), torch.no_grad():
        y, _ = fake_layer(cls, dtype)
    assert (y.device.type, y.dtype, y.shape) == ("cuda", dtype, (5, 2, 4))


def test_a_build_without_cuda_says_what_to_do(monkeypatch):
    for module in (raw, ops):
        monkeypatch.setattr(module, "HAS_CUDA", False)
    with FakeTensorMode(), torch.no_grad(), pytest.raises(RuntimeError) as caught:
        fake_layer("gru", torch.float32)
    text = str(caught.value)
    assert "\n" not in text
    for word in ("cuda:0", "built without CUDA", "nvcc", "CUDA_HOME", "gatedrnn.revert"):
        assert word in text


@needs_cuda_build
def test_out_of_memory_is_torchs_own_error(monkeypatch):
    """Also where an allocation failed that the fake kernel does not repeat."""
    class Op:
        def name(self):
            return "gatedrnn::gru_cell_forward"

        def __call__(self, *arguments):
            raise RuntimeError("torch_call_dispatcher API call failed at ops.h, line 140")

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    with FakeTensorMode(), pytest.raises(torch.OutOfMemoryError, match="cuda:0"):
        x, h = torch.empty(2, 3, device="cuda"), torch.empty(2, 4, device="cuda")
        raw._run(Op(), x, h, None, None, None, None, True)
    assert waited
