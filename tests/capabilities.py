"""What PyTorch's tools can do with a recurrent layer: probes, whose outcome is the README's table.

A probe takes a class, ours or torch.nn's, and fails where the class fails or gives other values.

    python -m tests.capabilities --write    # half a minute; renews the table in README.md
"""

import argparse
import copy
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, func, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import gatedrnn

T, B, IN, H = 3, 2, 4, 5
README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- capabilities -->\n", "<!-- end of capabilities -->\n"
PROBES: dict[str, Callable[[Any], None]] = {}


def probe(row: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(f: Callable[[Any], None]) -> Callable[[Any], None]:
        PROBES[row] = f
        return f

    return register


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=10 * tolerance, atol=tolerance)


def weights(m: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in m.named_parameters()}


def results(m: nn.Module) -> Callable[..., list[Tensor]]:
    return lambda w, x: tree_leaves(func.functional_call(m, w, (x,)))


def loss(m: nn.Module) -> Callable[..., Any]:
    return lambda w, x: sum(t.square().sum() for t in results(m)(w, x))


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager", **options)


def numerically(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """The derivative along a direction by differences, of a function in float64."""
    return (f(x + 1e-6 * direction) - f(x - 1e-6 * direction)) / 2e-6


def slope(cls: Any, m: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    """The derivative of the first result along a direction, found numerically."""
    wide = cls(IN, H).double()
    wide.load_state_dict(m.state_dict())
    with torch.no_grad():
        return numerically(lambda x: wide(x)[0], x.double(), direction.double()).float()


@probe("`torch.compile(fullgraph=True)`, training")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(T, B, IN)
    grads = [
        torch.autograd.grad(sum(t.square().sum() for t in tree_leaves(f(x))), list(m.parameters()))
        for f in (compiled(m), m)
    ]
    close(*grads)


@probe("`torch.compile`, another length without compiling again")
def _(cls: Any) -> None:
    m = cls(IN, H)
    f = compiled(m, dynamic=True)
    f(torch.randn(T, B, IN))
    with torch.compiler.set_stance("fail_on_recompile"):
        x = torch.randn(2 * T, B, IN)
        close(f(x), m(x))


@probe("`torch.compile` of a `PackedSequence`'s layer")
def _(cls: Any) -> None:
    m, p = cls(IN, H), pack_sequence([torch.randn(n, IN) for n in (2, 3)], enforce_sorted=False)
    close(compiled(lambda p: m(p)[1])(p), m(p)[1])


@probe("`torch.compile` of `torch.func.grad`")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(T, B, IN)
    f = func.grad(loss(m))
    close(compiled(f)(weights(m), x), f(weights(m), x))


class Padded(nn.Module):
    """One result of one layer, for exporters."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.rnn = cls(IN, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def layers_in(graph: torch.fx.Graph) -> int:
    """How many nodes stand for a whole layer."""
    called = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    return sum(any(word in name for word in ("gru", "lstm", "rnn_layer")) for name in called)


LENGTH = ({0: torch.export.Dim("length")},)


@probe("`torch.export`, any length")
def _(cls: Any) -> None:
    m = Padded(cls)
    program = torch.export.export(m, (torch.randn(T, B, IN),), dynamic_shapes=LENGTH)
    x = torch.randn(2 * T, B, IN)
    close(program.module()(x), m(x))


@probe("`torch.export`, one node a layer after `run_decompositions`")
def _(cls: Any) -> None:
    m, x = Padded(cls), torch.randn(T, B, IN)
    program = torch.export.export(m, (x,)).run_decompositions()
    close(program.module()(x), m(x))
    assert layers_in(program.graph) == 1


@probe("`torch.export`, gradients of the program's")
def _(cls: Any) -> None:
    m, x = Padded(cls), torch.randn(T, B, IN)
    program = torch.export.export(m, (x,)).module()
    grads = [torch.autograd.grad(f(x).square().sum(), list(f.parameters())) for f in (program, m)]
    close(*grads)


@probe("`torch.onnx.export`, ONNX's own operator, any length, and the file says so")
def _(cls: Any) -> None:
    import onnxruntime

    m = Padded(cls).eval()
    program = torch.onnx.export(
        m, (torch.randn(T, B, IN),), dynamic_shapes=LENGTH, dynamo=True, verbose=False
    )
    assert {n.op_type for n in program.model.graph} & {"GRU", "LSTM"}
    assert not isinstance(program.model.graph.outputs[0].shape[0], int)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(2 * T, B, IN)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.from_numpy(y), m(x).detach())


@probe("`torch.jit.trace`, any length")
def _(cls: Any) -> None:
    m = Padded(cls)
    traced = torch.jit.trace(m, torch.randn(T, B, IN))
    x = torch.randn(2 * T, B, IN)
    close(traced(x), m(x))


@probe("`make_fx`, one node a layer")
def _(cls: Any) -> None:
    m, x = Padded(cls), torch.randn(T, B, IN)
    program = make_fx(m)(x)
    close(program(x), m(x))
    assert layers_in(program.graph) == 1


@probe("`fx.symbolic_trace`, as a leaf")
def _(cls: Any) -> None:
    m, x = Padded(cls), torch.randn(T, B, IN)
    program = torch.fx.symbolic_trace(m)
    assert [n.target for n in program.graph.nodes if n.op == "call_module"] == ["rnn"]
    close(program(x), m(x))


@probe("second derivatives: a gradient penalty's gradients")
def _(cls: Any) -> None:
    m, x, v = cls(IN, H), torch.randn(T, B, IN), torch.randn(T, B, IN)
    wide = cls(IN, H).double()
    wide.load_state_dict(m.state_dict())

    def penalty(m: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(m(x)[0].sum(), x, create_graph=True)
        return g.square().sum() + 0 * x.sum()

    x.requires_grad_()
    (g,) = torch.autograd.grad(m(x)[0].sum(), x, create_graph=True)
    (actual,) = torch.autograd.grad(g.square().sum(), x)
    expected = numerically(lambda x: penalty(wide, x), x.detach().double(), v.double())
    close((actual * v).sum(), expected.detach().float(), 1e-4)


@probe("forward mode in float32: `jvp`")
def _(cls: Any) -> None:
    m, x, v = cls(IN, H), torch.randn(T, B, IN), torch.randn(T, B, IN)
    actual = func.jvp(lambda x: results(m)(weights(m), x)[0], (x,), (v,))[1]
    close(actual, slope(cls, m, x, v))


@probe("`torch.func.hessian` in float32")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(T, 1, IN)

    def value(x: Tensor) -> Tensor:
        return loss(m)(weights(m), x)

    close(func.hessian(value)(x), torch.autograd.functional.hessian(value, x), 1e-4)


@probe("`torch.func.vmap` over inputs")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(3, T, B, IN)
    close(func.vmap(m)(x)[0], torch.stack([m(v)[0] for v in x]))


@probe("`torch.func.vmap` over stacked weights: ensembles")
def _(cls: Any) -> None:
    models, x = [cls(IN, H) for _ in range(3)], torch.randn(T, B, IN)
    stacked, _ = func.stack_module_state(models)
    actual = func.vmap(results(models[0]), (0, None))(stacked, x)
    close(actual[0], torch.stack([m(x)[0] for m in models]))


@probe("gradients per sample: `vmap(grad)`")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(3, T, B, IN)
    each = [func.grad(loss(m))(weights(m), v) for v in x]
    actual = func.vmap(func.grad(loss(m)), (None, 0))(weights(m), x)
    close(actual, {n: torch.stack([e[n] for e in each]) for n in each[0]})


@probe("`torch.func.jacrev` through a `PackedSequence`")
def _(cls: Any) -> None:
    m = cls(IN, H).requires_grad_(False)
    p = pack_sequence([torch.randn(n, IN) for n in (3, 2)])

    def f(rows: Tensor) -> Tensor:
        return m(p._replace(data=rows))[0].data

    close(func.jacrev(f)(p.data), torch.autograd.functional.jacobian(f, p.data))


@probe("autocast returns its dtype, padded and packed")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(T, B, IN)
    packed = pack_sequence([torch.randn(n, IN) for n in (3, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = m(x)[0], m(packed)[0].data
        assert {y.dtype for y in outputs} == {torch.bfloat16}
        assert {y.dtype for y in tree_leaves(m(x)[1])} == {torch.bfloat16}
    close(outputs[0].float(), m(x)[0], 2e-2)


@probe("training with float16 autocast on the CPU")
def _(cls: Any) -> None:
    m, x = cls(IN, H), torch.randn(T, B, IN)
    with torch.autocast("cpu", torch.float16):
        value = m(x)[0].float().square().sum()
    low = torch.autograd.grad(value, list(m.parameters()))
    close(low, torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())), 2e-2)


@probe("FlopCounterMode counts every product")
def _(cls: Any) -> None:
    m = cls(IN, H)
    with FlopCounterMode(display=False) as counter:
        m(torch.randn(T, B, IN))
    steps = sum(p.numel() for p in m.parameters() if p.dim() == 2)
    assert counter.get_total_flops() == 2 * T * B * steps


@probe("a parametrized weight is evaluated once a forward")
def _(cls: Any) -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, w: Tensor) -> Tensor:
            self.calls += 1
            return w

    m, counted = cls(IN, H), Counted()
    nn.utils.parametrize.register_parametrization(m, "weight_hh_l0", counted)
    counted.calls = 0
    m(torch.randn(T, B, IN))
    assert counted.calls == 1


@probe("`torch.jit.script`")
def _(cls: Any) -> None:
    m, x = nn.Sequential(cls(IN, H)), torch.randn(T, B, IN)
    close(torch.jit.script(m)(x), m(x))


@probe("`quantize_dynamic`")
def _(cls: Any) -> None:
    m, x = nn.Sequential(cls(IN, H)), torch.randn(T, B, IN)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(m))
    assert type(quantized[0]).__module__.startswith("torch.ao")
    close(quantized(x)[0], m(x)[0], 5e-2)


# Rows in which ours refuse, in a sentence that names gatedrnn.revert.
REFUSED = ("`torch.jit.script`", "`quantize_dynamic`")


def works(row: str, cls: Any) -> bool:
    """Whether the probe passes, quietly: what tools print and warn of is not the question here."""
    torch.manual_seed(0)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            PROBES[row](cls)
        except Exception:
            return False
    return True


def outcome(row: str, ours: bool) -> str:
    """What stands in the table: yes, no, or the class that can."""
    module = gatedrnn if ours else nn
    can = [name for name in ("GRU", "LSTM") if works(row, getattr(module, name))]
    if ours and row in REFUSED and not can:
        return "`gatedrnn.revert` first"
    return "no" if not can else "yes" if len(can) == 2 else f"{can[0]} only"


def line(row: str, ours: str) -> str:
    return f"| {row} | {ours} | {outcome(row, False)} |\n"


def head() -> str:
    version = torch.__version__.partition("+")[0]
    return f"| | gatedrnn | torch.nn in torch {version} |\n| --- | --- | --- |\n"


def published() -> str:
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="renew the table in README.md")
    write = parser.parse_args().write
    new = head() + "".join(line(row, outcome(row, True)) for row in PROBES)
    print(new)
    if write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}{new}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
