"""Runs every CUDA kernel, emulated, on small arrays; test_cuda_sanitizers.py starts it in a process
whose kernels watch each access. Prints how much it ran.

    python cuda_kernel_sweep.py FOLDER all|few      the folder of the gatedrnn_cuda_kernels to run

`few` is for ThreadSanitizer, to which each CUDA thread is one: it takes a second for 1000 of them.
"""

import sys
from itertools import chain, product
from pathlib import Path

import numpy as np
from cuda_kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    MODES,
    PERSISTENT_MODES,
    SCALED,
    SCALED16,
    SPLIT,
    Layer,
    Memory,
    load_kernels,
    run_backward,
    run_forward,
    run_stack,
    stack_arrays,
    stacked,
    stored,
)
from kernel_reference import Case

# Cell and (T, B, H, P): more stages than a pipeline holds, rows of whole 16-byte parts, and odd
# everything.
ALL = [("gru", (2, 3, 168, None)), ("gru", (3, 17, 33, None)), ("lstm", (2, 3, 168, None)),
       ("lstm", (3, 17, 33, None)), ("lstm", (2, 3, 168, 168)), ("lstm", (3, 17, 33, 5))]
# Backward's sums are long enough to fill every pipeline again: of bfloat16 the second one's.
FEW = [("gru", (1, 3, 48, None)), ("lstm", (1, 3, 48, None)), ("lstm", (2, 3, 15, 19))]
FEW_OF_16_BITS = [FEW[0], ("lstm", (1, 3, 72, None)), FEW[2]]


def layers(few):
    for mode, tile in product(MODES, ("narrow", "wide")):
        some = FEW_OF_16_BITS if mode is BFLOAT16 else FEW
        for cell, (T, B, H, P) in some if few else ALL:
            odd = H % 2
            yield Layer(Case(cell, "float64", T, B, 3, H, P, packed=bool(odd)), mode, tile,
                        directions=1 if few else 1 + odd, gap=odd)


# Cell, (units, cluster, sequences), (T, B, H): in few, also clusters that exchange, of which
# ThreadSanitizer can hold two blocks, and eight blocks of the grid.
PERSISTENT = [("gru", (64, 1, 16), (3, 19, 51)), ("lstm", (64, 1, 8), (2, 3, 64)),
              ("gru", (256, 2, 16), (4, 11, 210)), ("gru", (256, 2, 16), (4, 11, 211)),
              ("gru", (128, 0, 8), (3, 5, 111))]
MORE_PERSISTENT = [("lstm", (128, 1, 8), (3, 9, 100)), ("gru", (256, 8, 8), (4, 3, 201)),
                   ("lstm", (256, 4, 16), (4, 17, 256)), ("gru", (512, 8, 8), (3, 9, 310)),
                   ("lstm", (512, 16, 16), (3, 5, 333)), ("lstm", (256, 0, 16), (3, 19, 233))]


def persistent(few):
    for cell, kernel, (T, B, H) in PERSISTENT if few else PERSISTENT + MORE_PERSISTENT:
        for mode in (SCALED,) if few else PERSISTENT_MODES:
            odd = H % 2
            ragged = bool(odd and kernel[1])  # the grid's know no lengths
            yield Layer(Case(cell, "float64", T, B, 3, H, packed=ragged), mode, "narrow",
                        persistent=kernel, directions=1 if few else 1 + odd, gap=odd,
                        padded=ragged and kernel[1] > 1, projects=ragged and mode is SCALED)


# Strict float32: a cluster for each sequence, or operands in two parts.
STRICT = [(FLOAT32, "gru", (64, 1, 1), (3, 2, 51)), (SPLIT, "lstm", (64, 1, 8), (3, 3, 51))]
MORE_STRICT = [(FLOAT32, "lstm", (64, 1, 1), (3, 2, 64)),
               (FLOAT32, "gru", (128, 4, 1), (4, 3, 101)),
               (FLOAT32, "lstm", (256, 8, 1), (4, 2, 256)),
               (FLOAT32, "gru", (512, 16, 1), (3, 1, 333)),
               (SPLIT, "gru", (128, 2, 16), (4, 11, 101)), (SPLIT, "gru", (256, 4, 8), (3, 3, 211)),
               (SPLIT, "lstm", (256, 8, 16), (3, 17, 256))]


def strict(few):
    for mode, cell, kernel, (T, B, H) in STRICT if few else STRICT + MORE_STRICT:
        odd = 0 if few else H % 2
        case = Case(cell, "float64", T, B, 3, H, packed=bool(odd and mode is SPLIT))
        yield Layer(case, mode, "narrow", persistent=kernel, directions=1 + odd, gap=odd)


# Layers at the same time.
STACKS = [(SCALED, "gru", 2, (64, 1, 8), (3, 9, 51)), (SCALED, "lstm", 2, (128, 2, 8), (2, 3, 97))]
MORE_STACKS = [(SCALED, "lstm", 4, (64, 1, 16), (3, 19, 64)),
               (BFLOAT16, "gru", 3, (128, 2, 8), (4, 11, 101)),
               (SCALED16, "gru", 2, (256, 8, 16), (4, 3, 201)),
               (SCALED, "lstm", 2, (256, 8, 16), (3, 17, 256))]


def stacks(few):
    for mode, cell, count, kernel, (T, B, H) in STACKS if few else STACKS + MORE_STACKS:
        layer = Layer(Case(cell, "float64", T, B, 3, H), mode, "narrow", persistent=kernel,
                      gap=H % 2)
        yield stacked(layer, count)


# What either call gets, but the sizes.
NAMES = ("projected w_hh b_ih b_hh w_hr h0 c0 y hn cn gates c carry hidden w_hh_t w_hr_t dy dhn "
         "dcn dc dgates dh previous carry_h carry_c dh0 dc0").split()


def unaligned():
    """One array alone does not allow the access that all others do, by where it begins or by its
    stride: by pairs, or by 16 bytes."""
    for (mode, off), (cell, P), name in product(
        [(FLOAT32, 1), (FLOAT32, 2), (FLOAT16, 1)],
        [("gru", None), ("lstm", None), ("lstm", 16)], NAMES,
    ):
        case = Case(cell, "float64", 2, 2, 3, 16, P)
        yield Layer(case, mode, "narrow", shift=off, only=name)
        yield Layer(case, mode, "narrow", gap=off, only=name)


def run_cell(kernels, kind, cell, B, H):
    G, values = 3 if cell == "gru" else 4, np.linspace(-3, 3, 5 * B * H)
    arrays = {"gates_x": G, "gates_h": G, "h": 1, "c": 1, "h_next": 1, "c_next": 1, "saved": G + 1,
              "dh": 1, "dc": 1, "dgates_x": G, "dgates_h": G, "dh_prev": 1, "dc_prev": 1}
    arrays = {name: stored(values[:n * B * H].copy(), kind) for name, n in arrays.items()}
    for call in ("cell_forward", "cell_backward"):
        getattr(kernels, f"{call}_{kind}")(cell, B, H, arrays)


def main(folder, extent):
    few = extent == "few"
    Memory.guard = 0
    kernels = load_kernels(Path(folder).resolve())
    count = 0
    for layer in chain(layers(few), persistent(few), strict(few), [] if few else unaligned()):
        saved = run_forward(kernels, layer)
        grads = run_backward(kernels, layer, saved)
        assert all(np.isfinite(value).all() for part in (*saved, *grads) for value in part.values())
        if not few:
            run_forward(kernels, layer, train=False)
        count += 1
    for stack in stacks(few):
        every = stack_arrays(stack)
        for train in (True,) if few else (True, False):
            saved = run_stack(kernels, stack, every, train)
            assert all(np.isfinite(value).all() for part in saved for value in part.values())
        count += 1
    if few:  # half is multiplied in forward only
        run_forward(kernels, Layer(Case("gru", "float64", 1, 1, 3, 264), FLOAT16, "narrow"))
    for kind, cell in product({mode.kind for mode in MODES}, ("gru", "lstm")):
        run_cell(kernels, kind, cell, 3, 100)
    print(f"{count} layers, {kernels.launches()} launches")


if __name__ == "__main__":
    main(*sys.argv[1:])
