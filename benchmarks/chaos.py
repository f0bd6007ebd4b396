"""Whether the persistent kernels give the same bits again and again while their warps are delayed
at random: a wait that is missing would show, if not each time.

    make chaos                    where nvcc is: build/chaos, with the delays of csrc/cuda/chaos.h
    python -m benchmarks.chaos    on a GPU; the exit code is 1 if any result changed
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product

from . import gpu

CASES = [  # B, T, H, L: every shape of the kernels, a batch of several clusters, none of it whole
    (19, 40, 64, 1), (67, 40, 128, 1), (3, 60, 250, 1), (1030, 30, 256, 1), (21, 40, 500, 1),
    (300, 20, 512, 1), (19, 30, 700, 1), (3, 30, 1400, 1),
    (19, 40, 60, 4), (27, 60, 128, 3), (35, 60, 250, 2),  # at the same time
]
DTYPES = ("tf32", "float32", "float16", "bfloat16")
RUNS = 200


def changed(module: object, x: object, cotangents: object, runs: int) -> str:
    """What differs from the first run, and in which one; or nothing."""
    import torch

    def results() -> list[torch.Tensor]:
        module.zero_grad()
        x.grad = None
        y, final = module(x)
        outputs = [y, *(final if isinstance(final, tuple) else (final,))]
        torch.autograd.backward(outputs, cotangents)
        gradients = [p.grad.clone() for p in module.parameters()]
        return [t.detach().clone() for t in (*outputs, x.grad, *gradients)]

    first = results()
    for k in range(1, runs):
        for n, (a, b) in enumerate(zip(first, results(), strict=True)):
            if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                return f"result {n} of run {k} differs"
    return ""


def check(device: str, runs: int) -> int:
    """Checks every case on a device, prints what became of it, and returns how many changed."""
    import torch

    import gatedrnn

    from .cuda_device import precision

    failures = 0
    for cell, name, (B, T, H, L) in product(("GRU", "LSTM"), DTYPES, CASES):
        os.environ["GATEDRNN_CUDA_KERNEL"] = "persistent" if L == 1 else "wavefront"
        torch.manual_seed(B)
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        module = getattr(gatedrnn, cell)(5, H, L, bidirectional=B < 100 and L == 1)
        module = module.to(device, dtype)
        x = torch.randn(T, B, 5, device=device, dtype=dtype, requires_grad=True)
        with precision(name):
            y, final = module(x)
            outputs = [y, *(final if isinstance(final, tuple) else (final,))]
            cotangents = [torch.randn_like(t) for t in outputs]
            del outputs, final
            found = changed(module, x, cotangents, runs)
        failures += bool(found)
        print(f"{cell} B={B} T={T} H={H} L={L} {name}: {found or 'the same'}", flush=True)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each case (default: {RUNS})")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(gpu.CHAOS))  # whatever is imported from here on is that build's
    import torch

    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU that torch can use: there is none")
    import gatedrnn

    if not torch.ops.gatedrnn.cuda_architectures().endswith("with delays"):
        parser.error(f"the gatedrnn in {gatedrnn.__path__[0]} has no delays: type `make chaos`")
    return 1 if check("cuda", args.runs) else 0


if __name__ == "__main__":
    sys.exit(main())
