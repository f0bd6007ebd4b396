"""Prints how far the CUDA kernels are from float64, in every precision, beside torch.nn's float32
on the CPU: the tables of benchmarks/README.md.

    python tests/cuda_errors.py      emulated: needs build/emulated

A kernel starts from the same numbers as its oracle, rounded to its type before.
"""

from collections.abc import Iterator

import numpy as np
import torch
from cuda_kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    SCALED,
    SCALED16,
    SPLIT,
    TF32,
    Layer,
    Mode,
    backward,
    forward,
    load_kernels,
    loaded,
    run_backward,
    run_forward,
    run_stack,
    stacked,
    stored,
    to_tf32,
)
from kernel_reference import Arrays, Case

T, B, H = 30, 8, 256
TILED = {"gru": (H, 2, 8), "lstm": (H, 4, 8)}
GRID = dict.fromkeys(TILED, (H, 0, 8))
# What is printed, the mode, and the kernel by cell: units, cluster, sequences; None: step kernels.
KERNELS: list[tuple[str, Mode, dict[str, tuple[int, int, int]] | None]] = [
    ("strict float32: step", FLOAT32, None),
    ("strict float32: latency", FLOAT32, {"gru": (H, 8, 1), "lstm": (H, 8, 1)}),
    ("strict float32: persistent, operands in two parts", SPLIT,
     {"gru": (H, 4, 8), "lstm": (H, 8, 16)}),
    ("float32 with TF32: step, real TF32", TF32, None),
    ("float32 with TF32: persistent, scaled float16", SCALED, TILED),
    ("float32 with TF32: of the grid, scaled float16", SCALED, GRID),
    ("float16: step", FLOAT16, None),
    ("float16: persistent", SCALED16, TILED),
    ("float16: of the grid", SCALED16, GRID),
    ("bfloat16: step", BFLOAT16, None),
    ("bfloat16: persistent", BFLOAT16, TILED),
    ("bfloat16: of the grid", BFLOAT16, GRID),
]


def numbers(case: Case) -> Arrays:
    """Weights and biases as torch.nn draws them, times the case's scale; W_ih x as it is."""
    rng = np.random.default_rng(1)
    a = {name: value for name, value in case.arrays().items() if name not in ("x", "w_ih")}
    for name in ("w_hh", "b_ih", "b_hh"):
        a[name] = rng.uniform(-case.scale, case.scale, a[name].shape) / np.sqrt(H)
    a["projected"] = rng.standard_normal((T * B, case.gates * H)) / np.sqrt(3)
    if case.cell == "lstm":  # torch.nn knows no gradient of all cell states
        a["dc"] = np.zeros((T * B, H))
    return a


def weight_gradient(case: Case, grads: Arrays, a: Arrays, y: np.ndarray) -> np.ndarray:
    """dW_hh, of a kernel's dgates and states, itself in float64."""
    previous = np.concatenate([a["h0"], y.reshape(-1, H)[:-B]])
    dgates = grads["dgates"].reshape(-1, 4 * H)
    if case.cell == "gru":
        dgates = np.hstack([dgates[:, :2 * H], dgates[:, 3 * H:]])
    return dgates.T @ previous


def largest(ours: np.ndarray, ref: np.ndarray) -> float:
    return float(np.abs(ours - ref.reshape(ours.shape)).max())


def errors(case: Case, a: Arrays, y: np.ndarray, dh0: np.ndarray, dw: np.ndarray) -> list[float]:
    """Of h, absolute; of the gradients of h0 and W_hh, in units of the largest."""
    saved = forward(case, a)
    ref = backward(case, a, saved)
    ref_dw = weight_gradient(case, ref, a, saved["y"])
    return [largest(y, saved["y"]), largest(dh0, ref["dh0"]) / np.abs(ref["dh0"]).max(),
            largest(dw, ref_dw) / np.abs(ref_dw).max()]


def of_kernel(kernels, case: Case, mode: Mode, persistent: tuple[int, int, int] | None,
              ) -> list[float]:
    layer = Layer(case, mode, "narrow", persistent=persistent)
    a = {name: loaded(stored(value, mode.wide if name == "projected" else mode.kind))
         for name, value in numbers(case).items()}
    saved = run_forward(kernels, layer, [a])
    (grads,) = run_backward(kernels, layer, saved, [a])
    dw = weight_gradient(case, grads, a, saved[0]["y"])
    return errors(case, a, saved[0]["y"], grads["dh0"], dw)


def of_torch(case: Case) -> list[float]:
    """The input's product is of the identity, and so exact."""
    a = {name: value.astype(np.float32) for name, value in numbers(case).items()}
    given = {name: torch.from_numpy(value) for name, value in a.items()}
    gru = case.cell == "gru"
    module = (torch.nn.GRU if gru else torch.nn.LSTM)(case.gates * H, H)
    with torch.no_grad():
        for name, value in (("weight_ih", torch.eye(case.gates * H)), ("weight_hh", given["w_hh"]),
                            ("bias_ih", given["b_ih"]), ("bias_hh", given["b_hh"])):
            module.get_parameter(f"{name}_l0").copy_(value)
    x = given["projected"].view(T, B, -1)
    h0 = given["h0"][None].requires_grad_()
    y, last = module(x, h0 if gru else (h0, given["c0"][None]))
    results = [(y, given["dy"].view_as(y))]
    results += [(last, given["dhn"][None])] if gru else [
        (last[0], given["dhn"][None]), (last[1], given["dcn"][None])]
    dh0, dw = torch.autograd.grad([r for r, _ in results], [h0, module.weight_hh_l0],
                                  [d for _, d in results])
    wide = {name: value.astype(np.float64) for name, value in a.items()}
    return errors(case, wide, y.detach().double().numpy().reshape(T * B, H),
                  dh0[0].double().numpy(), dw.double().numpy())


def rows(cell: str) -> Iterator[tuple[str, list[float]]]:
    cases = [Case(cell, "float64", T, B, 3, H, scale=scale) for scale in (1.0, 4.0)]
    yield "torch.nn, float32, on the CPU", [e for case in cases for e in of_torch(case)]
    kernels = load_kernels()
    for name, mode, persistent in KERNELS:
        shape = persistent and persistent[cell]
        yield name, [e for case in cases for e in of_kernel(kernels, case, mode, shape)]


STACKED = {"float32 with TF32": SCALED, "float16": SCALED16, "bfloat16": BFLOAT16}


def of_stack(kernels, case: Case, mode: Mode) -> list[float]:
    """Of the second of two layers, its h: walked after the first one, whose output a product of its
    own takes, in TF32 where that is the mode; and walked with it."""
    layers = stacked(Layer(case, mode, "narrow", persistent=(H, 8, 16)), 2)
    first = {name: loaded(stored(value, mode.wide if name == "projected" else mode.kind))
             for name, value in numbers(case).items()}
    rng = np.random.default_rng(2)
    w_ih = rng.uniform(-case.scale, case.scale, (case.gates * H, H)) / np.sqrt(H)
    second = {name: np.roll(value, 1, -1) for name, value in first.items() if name != "projected"}
    second["w_ih"] = loaded(stored(w_ih, mode.kind))
    together = run_stack(kernels, layers, [first, second])[1]["y"]

    alone = Layer(case, mode, "narrow", persistent=TILED[case.cell])
    below = run_forward(kernels, alone, [first])[0]["y"]
    rounded = to_tf32 if mode is SCALED else np.asarray
    projected = rounded(below) @ rounded(second["w_ih"]).T
    given = second | {"projected": projected.astype(np.float32).astype(np.float64)}
    apart = run_forward(kernels, alone, [given])[0]["y"]

    ref = forward(case, first)["y"]
    ref = forward(case, second | {"projected": ref @ second["w_ih"].T})["y"]
    return [largest(apart, ref), largest(together, ref)]


def stack_rows(cell: str) -> Iterator[tuple[str, list[float]]]:
    cases = [Case(cell, "float64", T, B, 3, H, scale=scale) for scale in (1.0, 4.0)]
    kernels = load_kernels()
    for name, mode in STACKED.items():
        yield name, [e for case in cases for e in of_stack(kernels, case, mode)]


def main() -> None:
    for cell in ("gru", "lstm"):
        print(f"\n| {cell.upper()} | h | dh0 | dW_hh | h, weights x 4 | dh0 | dW_hh |")
        print("| --- |" + " ---: |" * 6)
        for name, found in rows(cell):
            print(f"| {name} | {' | '.join(f'{error:.1e}' for error in found)} |", flush=True)
    for cell in ("gru", "lstm"):
        print(f"\n| {cell.upper()}, second of two layers | h, persistent | h, wavefront "
              "| weights x 4, persistent | wavefront |")
        print("| --- |" + " ---: |" * 4)
        for name, found in stack_rows(cell):
            print(f"| {name} | {' | '.join(f'{error:.1e}' for error in found)} |", flush=True)


if __name__ == "__main__":
    main()
