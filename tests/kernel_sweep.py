"""Runs every kernel on small arrays that end where their allocation ends; test_sanitizers.py starts
it in a process whose kernels watch each access. Prints how much it ran.

    python kernel_sweep.py FOLDER      the folder of the gatedrnn_kernels to run
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np
from kernel_reference import Case, shaped, weights

LENGTHS = range(1, 41)
# Tails of every kind at 4, 8 and 16 units a vector; more than one tile of sequences; one of each.
SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 9, 17, 33), (2, 17, 1, 16), (3, 8, 18, 31),
         (4, 6, 33, 129)]
RUNS = [("rows", 1, 1, 2), ("rows", 2, None, 0), ("units", 3, 2, 1), ("groups", 4, 1, 3),
        ("plan", 2, None, None)]
LAYER = {"float32": "Layer32", "float64": "Layer64"}
NARROW = {"LayerFloat16": lambda a: a.astype(np.float16).view(np.uint16),
          "LayerBfloat16": lambda a: (a.view(np.uint32) >> 16).astype(np.uint16)}
STEP = {"float32": "Step32", "float64": "Step64"}


def cases():
    for cell, dtype, (k, size) in product(("gru", "lstm"), LAYER, enumerate(SIZES)):
        H = size[-1]
        for width in (None,) if cell == "gru" else (None, max(1, H // 2)):
            yield Case(cell, dtype, *size, width, reverse=bool(k % 2), packed=bool(k // 2 % 2))


def run_layer(kernels, case, isa, partition, threads, chunk, ahead, train):
    a = case.arrays()
    layer = getattr(kernels, LAYER[case.dtype])(
        case.cell, shaped(case, a["x"]), a["h0"], a.get("c0"), weights(a), reverse=case.reverse,
        batch_sizes=case.batch_sizes if case.packed else None, isa=isa, threads=threads,
        partition=partition, train=train, chunk=chunk, ahead=ahead,
    )
    layer.forward()
    assert np.isfinite(layer.y).all() and np.isfinite(layer.hn).all()
    if train:
        layer.backward(shaped(case, a["dy"]), a["dhn"], a.get("dcn"))
        assert np.isfinite(layer.dx).all() and np.isfinite(layer.dw_hh).all()


def run_narrow(kernels, case, isa, partition, threads, chunk, ahead):
    """The same layers where numbers are stored in 16 bits, with panels of two kinds."""
    for (name, stored), narrow_panels in product(NARROW.items(), (False, True)):
        a = {key: stored(array) for key, array in case.arrays().items()}
        layer = getattr(kernels, name)(
            case.cell, shaped(case, a["x"]), a["h0"], a.get("c0"), weights(a), reverse=case.reverse,
            batch_sizes=case.batch_sizes if case.packed else None, isa=isa, threads=threads,
            partition=partition, chunk=chunk, ahead=ahead, narrow_panels=narrow_panels,
        )
        layer.forward()
        layer.backward(shaped(case, a["dy"]), a["dhn"], a.get("dcn"))
        assert layer.y.any() and layer.dx.any() and layer.dw_hh.any()


def run_step(kernels, case, isa):
    a = case.arrays()
    width = case.batch_sizes[-1]
    step = getattr(kernels, STEP[case.dtype])(
        case.cell, a["x"][:width].copy(), a["h0"][:width].copy(),
        a["c0"][:width].copy() if "c0" in a else None, weights(a), isa=isa, threads=2,
    )
    step.forward()
    assert np.isfinite(step.h_next).all() and np.isfinite(step.saved).all()


def run_products(kernels, dtype, size, isa):
    B, N, K = size
    rng = np.random.default_rng(size)
    d, w, a, flipped = (rng.standard_normal(shape).astype(dtype)
                        for shape in ((B, N), (N, K), (B, K), (K, N)))
    for threads in (1, 3):
        results = [
            kernels.multiply(d, flipped, isa=isa, threads=threads),
            *kernels.product_backward(d, w, a, a, True, isa=isa, threads=threads),
            *kernels.product_backward(d, w, a, a, False, isa=isa, threads=threads),
        ]
        assert all(np.isfinite(result).all() for result in results)


def main(folder):
    folder = str(Path(folder).resolve())
    sys.path.insert(0, folder)
    import gatedrnn_kernels as kernels

    assert kernels.__file__.startswith(folder), kernels.__file__
    count = 0
    for isa in kernels.instruction_sets():
        for dtype, length in product(LAYER, LENGTHS):
            x = np.linspace(-3, 3, length).astype(dtype)
            assert np.isfinite(kernels.sigmoid(x, isa=isa) + kernels.tanh(x, isa=isa)).all()
        for dtype, size in product(LAYER, SIZES):
            run_products(kernels, dtype, size[1:], isa)
        for case in cases():
            for run in RUNS:
                run_layer(kernels, case, isa, *run, train=True)
                if case.dtype == "float32" and run[2]:
                    run_narrow(kernels, case, isa, *run)
                count += 1
            run_layer(kernels, case, isa, "plan", 1, None, None, train=False)
            if not case.P:
                run_step(kernels, case, isa)
    for isa, case, run in product(kernels.pair_sets(), cases(), RUNS):
        if case.dtype == "float32" and run[2]:
            run_narrow(kernels, case, isa, *run)
    print(f"{count} layers", *kernels.instruction_sets())


if __name__ == "__main__":
    main(sys.argv[1])
