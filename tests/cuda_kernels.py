"""Runs the CUDA kernels, emulated, on NumPy arrays that lie amid NaN, and says what they must give.

Free of torch and pytest, so that it also runs inside a process under sanitizers. Rows of all steps
are stored one after another, as in kernel_reference.py; arrays are in float64 or wider unless they
are `stored`: of the kernels' type, where bfloat16 is its bits as uint16.
"""

import importlib.util
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from kernel_reference import Arrays, Case, before, sigmoid

FOLDER = Path(__file__).resolve().parent.parent / "build" / "emulated"
SCHEDULES = [("fifo", 1), ("lifo", 1), ("random", 1), ("prio", 1)]


def load_kernels(folder: Path = FOLDER):
    """The module in that folder, also where one of its name is loaded already."""
    path = folder / f"gatedrnn_cuda_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    name = f"{folder.name}.gatedrnn_cuda_kernels"  # else pybind11 finds the one it knows
    spec = importlib.util.spec_from_file_location(name, path)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    return kernels


# ------------------------------------------------------------------------------------------------
# Precisions


def exact(x: np.ndarray) -> np.ndarray:
    return x


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Ten bits of mantissa, ties away from zero."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


def to_eleven_bits(x: np.ndarray) -> np.ndarray:
    """float16's significand with float32's exponents, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    even = bits >> np.uint32(13) & np.uint32(1)
    rounded = ((bits + np.uint32(0xFFF) + even) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def stored(x: np.ndarray, kind: str) -> np.ndarray:
    return to_bfloat16(x) if kind == "bfloat16" else x.astype(kind)


def loaded(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


@dataclass(frozen=True)
class Mode:
    """A type with a product: `wide` holds pre-activations and carried states, `grad` the gates'
    gradients. The roundings are those of a product's operands beyond how they are stored."""

    name: str
    kind: str
    product: str
    wide: str
    grad: str
    forward_rounding: Callable[[np.ndarray], np.ndarray] = exact
    backward_rounding: Callable[[np.ndarray], np.ndarray] = exact

    def __str__(self) -> str:
        return self.name


FLOAT32 = Mode("float32", "float32", "fma", "float32", "float32")
TF32 = Mode("tf32", "float32", "tf32", "float32", "float32", to_tf32, to_tf32)
FLOAT64 = Mode("float64", "float64", "fma", "float64", "float64")
FLOAT16 = Mode("float16", "float16", "half", "float32", "float32", exact, to_tf32)
BFLOAT16 = Mode("bfloat16", "bfloat16", "bfloat16", "float32", "bfloat16")
MODES = (FLOAT32, TF32, FLOAT64, FLOAT16, BFLOAT16)
# The persistent kernels', whose operands of float16 are scaled.
SCALED = Mode("scaled", "float32", "half", "float32", "float32", to_eleven_bits, to_eleven_bits)
SCALED16 = Mode("float16", "float16", "half", "float32", "float32", exact, to_eleven_bits)
PERSISTENT_MODES = (SCALED, SCALED16, BFLOAT16)
SPLIT = Mode("split", "float32", "split", "float32", "float32")  # in two parts: nearly exact


# ------------------------------------------------------------------------------------------------
# Memory


class Memory:
    """Arrays whose surroundings are NaN: beside them, and `gap` elements between rows and steps.

    They begin `shift` elements behind a multiple of 256 bytes. Outputs are NaN until written. If
    `only` names an array, gap and shift are its alone.
    """

    guard = 256  # bytes on both sides; none where a sanitizer watches the ends of allocations

    def __init__(self, gap: int = 0, shift: int = 0, only: str = "") -> None:
        self.gap, self.shift, self.only = gap, shift, only
        self.known: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool]] = []

    def input(self, array: np.ndarray, rows: bool = False, name: str = "") -> np.ndarray:
        return self._place(array.shape, array.dtype, rows, name, array)

    def output(self, shape: tuple[int, ...], kind: str, rows: bool = False,
               name: str = "") -> np.ndarray:
        dtype = np.dtype("uint16" if kind == "bfloat16" else kind)
        return self._place(shape, dtype, rows, name, None)

    def _place(self, shape, dtype, rows, name, value):
        # Scratch is the binding's own, and always aligned.
        meant = name != "packed" and (name == self.only or not self.only)
        gap = self.gap * dtype.itemsize if meant and rows else 0
        strides = [dtype.itemsize]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size + gap)
        extent = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        shift = self.shift * dtype.itemsize if meant else 0
        buffer = np.full(shift + extent + 3 * self.guard, 0xFF, np.uint8)
        begin = self.guard + shift
        if self.guard:
            begin += -buffer.ctypes.data % self.guard
        inside = buffer[begin:begin + extent].view(dtype)
        view = np.lib.stride_tricks.as_strided(inside, shape, strides)
        if value is not None:
            view[...] = value
        self.known.append((buffer, buffer.copy(), view, value is not None))
        return view

    def check(self) -> None:
        """Inputs have not changed, nor has anything outside the outputs."""
        for buffer, was, view, is_input in self.known:
            changed = buffer != was
            if not is_input:  # look at it as the view lies in the buffer
                begin = view.ctypes.data - buffer.ctypes.data
                np.lib.stride_tricks.as_strided(
                    changed[begin:], (*view.shape, view.itemsize), (*view.strides, 1))[...] = False
            where = np.flatnonzero(changed)
            assert not len(where), f"written at byte {where[0]} about an array of {view.shape}"


# ------------------------------------------------------------------------------------------------
# Layers


@dataclass(frozen=True)
class Layer:
    """A layer's run. `absent`: inputs that are null, of b_ih, b_hh, dy, dhn, dcn, dc."""

    case: Case  # of the first direction
    mode: Mode
    tile: str
    directions: int = 1
    gap: int = 0
    shift: int = 0
    only: str = ""  # the array whose gap and shift these are
    absent: frozenset[str] = frozenset()
    persistent: tuple[int, int, int] | None = None  # units, cluster (0: the grid), sequences
    padded: bool = False  # the packed sequences, padded and in another order, by their lengths
    projects: bool = False  # from the input, which the persistent kernel multiplies

    def __str__(self) -> str:
        case = str(self.case).replace(f"-{self.case.dtype}", "").replace(f"-I{self.case.I}", "")
        flags = [f"{self.directions}x"] if self.directions > 1 else []
        flags += [f"{name}={value}" for name in ("gap", "shift") if (value := getattr(self, name))]
        flags += [self.only] if self.only else []
        flags += [name for name in ("padded", "projects") if getattr(self, name)]
        flags += ["no-" + "-".join(sorted(self.absent))] if self.absent else []
        kernel = "/".join(map(str, self.persistent)) if self.persistent else self.tile
        return "-".join([str(self.mode), kernel, case, *flags])

    def cases(self) -> list[Case]:
        """The second direction goes the other way; its features, which the kernels do not see, only
        draw other numbers."""
        other = replace(self.case, I=self.case.I + 1, reverse=not self.case.reverse)
        return [self.case, other][:self.directions]

    def arrays(self) -> list[Arrays]:
        """What the kernels get, in the precision of their types."""
        every = []
        for case in self.cases():
            a = case.arrays()
            x, w_ih = (a.pop(name) for name in ("x", "w_ih"))
            if self.projects:
                x, w_ih = (loaded(stored(value, self.mode.kind)) for value in (x, w_ih))
                a |= {"x": x, "w_ih": w_ih}
            a["projected"] = x @ w_ih.T
            if case.cell == "lstm":
                rows = len(a["dy"]), case.H
                a["dc"] = np.random.default_rng(case.H).standard_normal(rows)
            kinds = {"projected": self.mode.wide}
            every.append({
                name: np.zeros_like(value) if name in self.absent
                else loaded(stored(value, kinds.get(name, self.mode.kind)))
                for name, value in a.items()
            })
        return every


def sizes(case: Case) -> dict[str, object]:
    return {"T": case.T, "B": case.B, "I": case.I, "H": case.H, "P": case.state,
            "reverse": case.reverse}


class AsTheyAre:
    """Rows and sequences where the case has them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        offsets = np.cumsum([0, *case.batch_sizes]).tolist()
        self.arrays: dict[str, object] = {"offsets": offsets} if case.packed else {}

    def shape(self, width: int) -> tuple[int, ...]:
        case = self.case
        return (sum(case.batch_sizes), width) if case.packed else (case.T, case.B, width)

    def rows(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(self.shape(value.shape[-1]))

    def sequences(self, value: np.ndarray) -> np.ndarray:
        return value

    def back(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(-1, value.shape[-1])


class Padded(AsTheyAre):
    """The rows of a packed case in steps of the whole batch amid NaN, its sequences shuffled."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.order = np.random.default_rng(case.B).permutation(case.B)  # longest first
        self.at = (np.repeat(np.arange(case.T), case.batch_sizes),
                   np.concatenate([self.order[:n] for n in case.batch_sizes]))
        lengths = np.bincount(self.at[1])
        self.arrays = {"lengths": lengths.astype(np.int64), "order": self.order.astype(np.int64)}

    def shape(self, width: int) -> tuple[int, ...]:
        return self.case.T, self.case.B, width

    def rows(self, value: np.ndarray) -> np.ndarray:
        padded = np.full(self.shape(value.shape[-1]), np.nan)
        padded[self.at] = value
        return padded

    def sequences(self, value: np.ndarray) -> np.ndarray:
        shuffled = np.empty_like(value)
        shuffled[self.order] = value
        return shuffled

    def back(self, value: np.ndarray) -> np.ndarray:
        if value.ndim == 2:
            return value[self.order]
        outside = np.ones(value.shape[:2], bool)
        outside[self.at] = False
        assert np.isnan(loaded(value[outside])).all(), "written beyond the end of a sequence"
        return value[self.at]


class Placed:
    """One direction's arrays for one call."""

    def __init__(self, layer: Layer, case: Case, memory: Memory) -> None:
        self.layer, self.case, self.memory = layer, case, memory
        self.layout = (Padded if layer.padded else AsTheyAre)(case)
        self.arrays: dict[str, object] = sizes(case) | self.layout.arrays
        self.wanted: list[str] = []

    def inputs(self, kind: str, **arrays: np.ndarray) -> None:
        for name, value in arrays.items():
            if name not in self.layer.absent:
                if name in ("h0", "c0", "dhn", "dcn"):
                    value = self.layout.sequences(value)
                self.arrays[name] = self.memory.input(stored(value, kind), name=name)

    def input_rows(self, kind: str, **arrays: np.ndarray) -> None:
        for name, value in arrays.items():
            if name not in self.layer.absent:
                value = stored(self.layout.rows(value), kind)
                self.arrays[name] = self.memory.input(value, rows=True, name=name)

    def outputs(self, kind: str, wanted: bool = True, **widths: int) -> None:
        """[B, width] each."""
        for name, width in widths.items():
            self.arrays[name] = self.memory.output((self.case.B, width), kind, name=name)
            self.wanted += [name] if wanted else []

    def output_rows(self, kind: str, **widths: int) -> None:
        for name, width in widths.items():
            self.arrays[name] = self.memory.output(self.layout.shape(width), kind, True, name)
            self.wanted.append(name)

    def one_step(self, kind: str, **widths: int) -> None:
        """[B, width] each, for every step the same memory."""
        for name, width in widths.items():
            buffer = self.memory.output((self.case.B, width), kind)
            self.arrays[name] = np.lib.stride_tricks.as_strided(
                buffer, (self.case.T, *buffer.shape), (0, *buffer.strides))

    def pack_scratch(self, kernels, forward: bool, matrices: int = 1) -> None:
        product = self.layer.mode.product
        if self.layer.persistent and product != "fma":
            case, persistent = self.case, self.layer.persistent
            size = kernels.scratch_size(product, case.gates, persistent, case.B, forward)
            size *= matrices
            self.arrays["packed"] = self.memory.output((size,), "float32", name="packed")
            if self.case.packed and not self.layer.padded:
                size = self.case.T + self.case.B
                self.arrays["places"] = self.memory.output((size,), "int64", name="places")

    def results(self) -> Arrays:
        return {name: loaded(self.layout.back(a))
                for name in self.wanted if isinstance(a := self.arrays[name], np.ndarray)}


def run_forward(kernels, layer: Layer, arrays: list[Arrays] | None = None, train: bool = True,
                ) -> list[Arrays]:
    """Each direction's y, hn; cn; and in training gates, c, hidden."""
    mode, memory = layer.mode, Memory(layer.gap, layer.shift, layer.only)
    directions = [place_forward(kernels, layer, case, a, memory, train)
                  for case, a in zip(layer.cases(), arrays or layer.arrays(), strict=True)]
    call = getattr(kernels, f"layer_forward_{mode.kind}")
    call(layer.case.cell, [d.arrays for d in directions], mode.product, layer.tile,
         layer.persistent or ())
    memory.check()
    return [d.results() for d in directions]


def place_forward(kernels, layer: Layer, case: Case, a: Arrays, memory: Memory, train: bool,
                  ) -> Placed:
    mode, d = layer.mode, Placed(layer, case, memory)
    H, P, lstm = case.H, case.state, case.cell == "lstm"
    if layer.projects:
        if "x" in a:
            d.input_rows(mode.kind, x=a["x"])
        d.inputs(mode.kind, w_ih=a["w_ih"])
    else:
        d.input_rows(mode.wide, projected=a["projected"])
    d.inputs(mode.kind, **{name: a[name] for name in ("w_hh", "b_ih", "b_hh", "h0")})
    d.output_rows(mode.kind, y=P)
    d.outputs(mode.kind, hn=P)
    if train:
        d.output_rows(mode.kind, gates=case.gates * H)
    if lstm:
        d.inputs(mode.kind, c0=a["c0"])
        d.outputs(mode.kind, cn=H)
        (d.output_rows if train else d.one_step)(mode.wide, c=H)
    elif mode.kind != mode.wide:
        d.outputs(mode.wide, wanted=False, carry=H)
    d.pack_scratch(kernels, True)
    if case.P:
        d.inputs(mode.kind, w_hr=a["w_hr"])
        (d.output_rows if train else d.one_step)(mode.kind, hidden=H)
    return d


def stacked(layer: Layer, count: int) -> list[Layer]:
    """The layer and those above it, whose input is the output of the one below."""
    case = replace(layer.case, I=layer.case.H)
    return [layer, *[replace(layer, case=case, projects=True)] * (count - 1)]


def stack_arrays(layers: list[Layer]) -> list[Arrays]:
    """Each layer's; no two layers' are alike. Those of the input are the first one's alone."""
    every = [{name: np.roll(value, k, -1) for name, value in layer.arrays()[0].items()}
             for k, layer in enumerate(layers)]
    for a in every[1:]:
        del a["x"], a["projected"]
    return every


def run_stack(kernels, layers: list[Layer], every: list[Arrays], train: bool = True,
              ) -> list[Arrays]:
    """Each layer's results, as run_forward's, of all layers at the same time."""
    first = layers[0]
    mode, case, memory = first.mode, first.case, Memory(first.gap, first.shift, first.only)
    placed: list[Placed] = []
    for layer, a in zip(layers, every, strict=True):
        d = place_forward(kernels, layer, layer.case, a, memory, train)
        if placed:
            d.arrays["x"] = placed[-1].arrays["y"]
        d.pack_scratch(kernels, True, matrices=2)
        placed.append(d)
    size = kernels.stack_exchange_size(first.persistent, len(layers), case.T, case.B)
    exchange = memory.output((size,), "float32", name="packed")
    getattr(kernels, f"stack_forward_{mode.kind}")(
        case.cell, [d.arrays for d in placed], mode.product, first.persistent,
        {"exchange": exchange})
    memory.check()
    return [d.results() for d in placed]


def run_backward(kernels, layer: Layer, saved: list[Arrays], arrays: list[Arrays] | None = None,
                 extras: bool = True) -> list[Arrays]:
    """Each direction's dgates (GRU: r, z, n, q), dh0; dc0; with projection dh; and as `extras`
    previous, and with projection hidden."""
    mode, memory, directions = layer.mode, Memory(layer.gap, layer.shift, layer.only), []
    for case, a, s in zip(layer.cases(), arrays or layer.arrays(), saved, strict=True):
        H, P, lstm = case.H, case.state, case.cell == "lstm"
        d = Placed(layer, case, memory)
        if layer.persistent:
            d.inputs(mode.kind, w_hh=a["w_hh"])
        else:
            d.inputs(mode.grad, w_hh_t=a["w_hh"].T)
        d.inputs(mode.kind, **{name: a[name] for name in ("h0", "dhn")})
        d.input_rows(mode.kind, y=s["y"], gates=s["gates"], dy=a["dy"])
        d.output_rows(mode.grad, dgates=4 * H)
        d.outputs(mode.kind, dh0=P)
        if extras:
            d.output_rows(mode.grad, previous=P)
        if lstm:
            d.inputs(mode.kind, c0=a["c0"], dcn=a["dcn"])
            d.input_rows(mode.wide, c=s["c"])
            d.input_rows(mode.kind, dc=a["dc"])
            d.outputs(mode.wide, wanted=False, carry_c=H)
            d.outputs(mode.kind, dc0=H)
        else:
            d.arrays["dq"] = 3 * H
            d.outputs(mode.wide, wanted=False, carry_h=H)
        if case.P:
            d.inputs(mode.grad, w_hr_t=a["w_hr"].T)
            d.output_rows(mode.grad, dh=P)
            if extras:
                d.output_rows(mode.grad, hidden=H)
        d.pack_scratch(kernels, False)
        directions.append(d)
    call = getattr(kernels, f"layer_backward_{mode.kind}")
    call(layer.case.cell, [d.arrays for d in directions], mode.product, layer.tile,
         layer.persistent or ())
    memory.check()
    return [d.results() for d in directions]


# ------------------------------------------------------------------------------------------------
# What they must give


def forward(case: Case, a: Arrays, rounding=exact, ours: Arrays | None = None) -> Arrays:
    """As kernel_reference.forward, but from `projected`, and with the `hidden` of a projection.

    With `ours`, products take the operands that the kernel left in memory: where they are rounded,
    a difference in the last bit before makes one of a thousandth after it.
    """
    gru, H, walk, P = case.cell == "gru", case.H, case.walk(), case.state
    N, kind = len(a["projected"]), a["projected"].dtype
    h, c = a["h0"].copy(), None if gru else a["c0"].copy()
    widths = {"y": P, "gates": case.gates * H} | ({} if gru else {"c": H})
    out = {name: np.zeros((N, w), kind) for name, w in widths.items()}
    if case.P:
        out["hidden"] = np.zeros((N, H), kind)
    for k, rows in enumerate(walk):
        n = rows.stop - rows.start
        operand = before(ours["y"], a["h0"], walk, k) if ours else h[:n]
        ax = a["projected"][rows] + a["b_ih"]
        ah = rounding(operand) @ rounding(a["w_hh"]).T + a["b_hh"]
        if gru:
            r, z = sigmoid(ax[:, :H] + ah[:, :H]), sigmoid(ax[:, H:2 * H] + ah[:, H:2 * H])
            q = ah[:, 2 * H:]
            h[:n] = (1 - z) * np.tanh(ax[:, 2 * H:] + r * q) + z * h[:n]
            out["gates"][rows] = np.hstack([r, z, q])
        else:
            i, f, g, o = np.split(ax + ah, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c[:n] = f * c[:n] + i * g
            h_new = o * np.tanh(c[:n])
            if case.P:
                out["hidden"][rows] = h_new
                operand = ours["hidden"][rows] if ours else h_new
                h_new = rounding(operand) @ rounding(a["w_hr"]).T
            h[:n] = h_new
            out["gates"][rows], out["c"][rows] = np.hstack([i, f, g, o]), c[:n]
        out["y"][rows] = h[:n]
    return {**out, "hn": h, **({} if gru else {"cn": c})}


def candidate(z: np.ndarray, h_prev: np.ndarray, h: np.ndarray) -> np.ndarray:
    """n, of which h' = (1 - z) n + z h is kept; where z is 1 it does not matter."""
    n = np.clip((h - z * h_prev) / np.where(z == 1, 1, 1 - z), -1, 1)
    return np.where(z == 1, 0, n)


def backward(case: Case, a: Arrays, saved: Arrays, rounding=exact, ours: Arrays | None = None,
             ) -> Arrays:
    """As kernel_reference.backward, with `previous`, a row's state one step before; `ours` as
    above."""
    gru, H, walk = case.cell == "gru", case.H, case.walk()
    kind, N = a["dy"].dtype, len(a["dy"])
    dh, dc = a["dhn"].copy(), None if gru else a["dcn"].copy()
    out = {"dgates": np.zeros((N, 4 * H), kind), "previous": np.zeros((N, case.state), kind)}
    if case.P:
        out |= {"dh": np.zeros((N, case.P), kind), "hidden": np.zeros((N, H), kind)}
    for k in reversed(range(len(walk))):
        rows = walk[k]
        n = rows.stop - rows.start
        d = dh[:n] + a["dy"][rows]
        h_prev = out["previous"][rows] = before(saved["y"], a["h0"], walk, k)
        if gru:
            r, z, q = np.split(saved["gates"][rows], 3, axis=1)
            new = candidate(z, h_prev, saved["y"][rows])
            da_n = d * (1 - z) * (1 - new * new)
            da_z = d * (h_prev - new) * (z * (1 - z))
            da = [da_n * q * (r * (1 - r)), da_z, da_n, da_n * r]
        else:
            c_prev, c = before(saved["c"], a["c0"], walk, k), saved["c"][rows]
            i, f, g, o = np.split(saved["gates"][rows], 4, axis=1)
            if case.P:
                out["dh"][rows], out["hidden"][rows] = d, o * np.tanh(c)
                d = rounding(ours["dh"][rows] if ours else d) @ rounding(a["w_hr"])
            whole = dc[:n] + a["dc"][rows] + d * o * (1 - np.tanh(c) ** 2)
            da = [whole * g * (i * (1 - i)), whole * c_prev * (f * (1 - f)),
                  whole * i * (1 - g * g), d * np.tanh(c) * (o * (1 - o))]
            dc[:n] = whole * f
        out["dgates"][rows] = np.hstack(da)
        operand = (ours or out)["dgates"][rows]
        if gru:
            operand = np.hstack([operand[:, :2 * H], operand[:, 3 * H:]])
        dh[:n] = rounding(operand) @ rounding(a["w_hh"]) + (d * z if gru else 0)
    return {**out, "dh0": dh, **({} if gru else {"dc0": dc})}
