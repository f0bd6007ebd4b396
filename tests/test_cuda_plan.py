"""How a layer is run on a GPU: plan_cuda is a pure function of shape, type and device, asked here
about devices that need not be there."""

from itertools import product

import pytest
from cuda_kernels import load_kernels

kernels = load_kernels()
# (architecture, multiprocessors) of a T4, A100, A10, L4's larger sister, H100, B200, RTX 5090.
DEVICES = [(75, 40), (80, 108), (86, 84), (89, 128), (90, 132), (100, 148), (120, 170)]
TYPES = ("float32", "float64", "float16", "bfloat16")
BATCHES = (1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 1024, 4097)
WIDTHS = (1, 7, 32, 33, 64, 65, 256, 1000, 2048)
# (type, tf32): the products of forward and backward with tensor cores of Ampere or later.
PRODUCTS = {
    ("float32", False): ("fma", "fma"),
    ("float32", True): ("tf32", "tf32"),
    ("float64", False): ("fma", "fma"),
    ("float64", True): ("fma", "fma"),
    ("float16", False): ("half", "tf32"),
    ("float16", True): ("half", "tf32"),
    ("bfloat16", False): ("bfloat16", "bfloat16"),
    ("bfloat16", True): ("bfloat16", "bfloat16"),
}

PERSISTENT = ("persistent_forward", "persistent_backward")
STEP = [0, 0, 0]  # no units, no clusters, no sequences

each_device = pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"sm_{d[0]}")


def plan(B, H, device, kind="float32", tf32=False, T=1, features=5, P=None, gates=3,
         directions=1, packed=False, clusters=()):
    return kernels.plan(T, B, features, H, H if P is None else P, gates, directions, kind, tf32,
                        packed, *device, clusters)


def products(p):
    return p["forward"], p["backward"]


def persistent(p):
    return tuple(p[name] for name in PERSISTENT)


@each_device
@pytest.mark.parametrize(("kind", "tf32"), PRODUCTS, ids=str)
def test_products(device, kind, tf32):
    """By type, wherever the instruction is. Turing has that of half only, which rounds nothing
    more; TF32 is chosen for float32 only where it may be."""
    expected = PRODUCTS[kind, tf32]
    if device[0] < 80:
        expected = ("half" if kind == "float16" else "fma", "fma")
    for B, H, gates, directions in product(BATCHES, WIDTHS, (3, 4), (1, 2)):
        p = plan(B, H, device, kind, tf32, gates=gates, directions=directions)
        assert products(p) == expected


@each_device
def test_tiles_do_not_depend_on_the_product(device):
    """Nor on the time, the features or the gates: only on how many tiles a step has."""
    for B, H in product(BATCHES, WIDTHS):
        tiles = {
            (p["forward_tile"], p["backward_tile"])
            for kind, tf32, T, features, gates in product(TYPES, (False, True), (1, 500), (0, 900),
                                                          (3, 4))
            for p in [plan(B, H, device, kind, tf32, T, features, gates=gates)]
        }
        assert len(tiles) == 1


@each_device
@pytest.mark.parametrize("directions", [1, 2])
def test_wide_tiles_where_a_quarter_of_the_multiprocessors_get_one(device, directions):
    seen = set()
    for B, H in product(BATCHES, WIDTHS):
        p = plan(B, H, device, directions=directions)
        for name, units in (("forward_tile", 32), ("backward_tile", 64)):
            wide = -(-B // 64) * -(-H // units) * directions
            assert p[name] == ("wide" if B > 16 and 4 * wide >= device[1] else "narrow"), (B, H)
            seen.add((name, p[name]))
    assert len(seen) == 4


@each_device
def test_more_work_never_narrows_a_tile(device):
    for name, directions in product(("forward_tile", "backward_tile"), (1, 2)):
        for B in BATCHES:
            tiles = [plan(B, H, device, directions=directions)[name] for H in WIDTHS]
            assert tiles == sorted(tiles)  # narrow, wide
        for H in WIDTHS:
            tiles = [plan(B, H, device, directions=directions)[name] for B in BATCHES]
            assert tiles == sorted(tiles)
            one = plan(BATCHES[0], H, device)[name]
            assert one <= plan(BATCHES[0], H, device, directions=2)[name]


def test_more_multiprocessors_never_widen_a_tile():
    for B, H in product(BATCHES, WIDTHS):
        tiles = [plan(B, H, (90, count))["forward_tile"] for count in (1, 16, 40, 132, 170, 1000)]
        assert tiles == sorted(tiles, reverse=True)


@pytest.mark.parametrize(("shape", "device", "tiles"), [
    # The article's: batches of 1024 windows, 256 units: 128 and 64 wide tiles.
    ({"B": 1024, "H": 256}, (90, 132), ("wide", "wide")),
    ({"B": 256, "H": 256}, (90, 132), ("narrow", "narrow")),
    ({"B": 256, "H": 256, "directions": 2}, (90, 132), ("wide", "narrow")),
    ({"B": 256, "H": 256}, (75, 40), ("wide", "wide")),
    ({"B": 1, "H": 256}, (75, 40), ("narrow", "narrow")),
    ({"B": 64, "H": 1056}, (90, 132), ("wide", "narrow")),
    ({"B": 64, "H": 1024}, (90, 132), ("narrow", "narrow")),
], ids=str)
def test_known_shapes(shape, device, tiles):
    p = plan(device=device, **shape)
    assert (p["forward_tile"], p["backward_tile"]) == tiles


@each_device
@pytest.mark.parametrize("shape", [{"B": 0, "H": 4}, {"B": 3, "H": 0}, {"B": 3, "H": 4, "T": 0},
                                   {"B": 0, "H": 0, "features": 0, "T": 0}], ids=str)
def test_empty_problems_have_a_plan(shape, device):
    p = plan(device=device, **shape)
    assert set(p) == {"forward", "backward", "forward_tile", "backward_tile", "projects",
                      *PERSISTENT, "forward_reason", "backward_reason"}
    assert not p["projects"]
    assert persistent(p) == (STEP, STEP)
    assert products(p) == ("fma", "fma")


KINDS = [("float32", True), ("float16", False), ("bfloat16", False)]


@each_device
def test_persistent_kernels_hold_what_is_asked(device):
    """In long sequences: every unit, in clusters only where there are some."""
    seen = set()
    for B, H, gates, directions, (kind, tf32) in product(BATCHES, WIDTHS, (3, 4), (1, 2), KINDS):
        p = plan(B, H, device, kind, tf32, 1000, gates=gates, directions=directions)
        for (units, cluster, sequences), name in zip(persistent(p), ("forward", "backward"),
                                                     strict=True):
            if p[name] == "fma":  # Turing's float32 is strict whatever may be rounded
                assert device[0] < 80
                continue
            seen.add((units, cluster) if cluster or not units else "grid")
            if units:
                assert units >= H and sequences % 8 == 0
                assert p[name] == ("bfloat16" if kind == "bfloat16" else "half")
    alone = {(0, 0), (64, 1), (128, 1), "grid"}
    if device[0] < 80:
        assert seen == {(0, 0)}
    elif device[0] < 90:
        assert seen == alone
    else:
        assert seen > alone and max(cluster for _, cluster in seen - {"grid"}) >= 8


@each_device
def test_the_grid_holds_what_is_asked(device):
    """Where no cluster does, as many blocks as there are multiprocessors at the most; both
    directions may take turns."""
    seen = set()
    for B, H, gates, directions, (kind, tf32) in product(BATCHES, WIDTHS, (3, 4), (1, 2), KINDS):
        p = plan(B, H, device, kind, tf32, 1000, gates=gates, directions=directions)
        for units, cluster, sequences in persistent(p):
            if not units or cluster:
                continue
            assert H <= units < H + 128 and units % 128 == 0 and 8 <= sequences <= 32
            assert -(-B // sequences) * units // 16 <= device[1]
            assert H > 512 or device[0] < 90
            seen.add(units)
    assert (max(seen, default=0) >= 1024) == (device[0] >= 80)


@each_device
def test_strict_float32(device):
    """In long sequences: every unit; of multiply-adds a cluster for each sequence, of operands in
    two parts for several."""
    seen = set()
    for B, H, gates, directions in product(BATCHES, WIDTHS, (3, 4), (1, 2)):
        p = plan(B, H, device, T=1000, gates=gates, directions=directions)
        for (units, cluster, sequences), name in zip(persistent(p), products(p), strict=True):
            seen.add((name, units, cluster))
            if units:
                assert units >= H and (sequences == 1 if name == "fma" else sequences % 8 == 0)
            else:
                assert name == "fma"
    expected = {("fma", 0, 0), ("fma", 64, 1)}
    if device[0] >= 80:
        expected |= {("split", 64, 1)}
    if device[0] >= 90:
        expected |= {("fma", 128, 4), ("fma", 256, 8), ("split", 128, 2), ("split", 256, 4),
                     ("split", 256, 8)}
    assert seen == expected


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("change", [
    {"P": 32}, {"kind": "float64"}, {"T": 1}, {"H": 2049}, {"packed": True, "H": 513},
], ids=str)
def test_what_the_step_kernels_keep(change, tf32):
    shape = {"B": 16, "H": 64, "device": (90, 132), "tf32": tf32, "T": 1000}
    assert STEP not in persistent(plan(**shape))
    assert persistent(plan(**shape | change)) == (STEP, STEP)


@pytest.mark.parametrize(("shape", "forward", "backward"), [
    # The article's, and the latencies of one sequence, of a few and of many.
    ({"B": 1024, "H": 256}, [256, 2, 16], [256, 2, 16]),
    ({"B": 1, "H": 256, "T": 1024}, [256, 8, 8], [256, 8, 8]),
    ({"B": 16, "H": 512, "T": 1024, "kind": "bfloat16"}, [512, 8, 8], [512, 8, 8]),
    ({"B": 64, "H": 512, "T": 256}, [512, 8, 8], [512, 8, 8]),
    ({"B": 16, "H": 500, "T": 256, "gates": 4}, [512, 16, 16], [512, 16, 16]),
    ({"B": 64, "H": 384, "T": 256}, [384, 6, 8], [384, 6, 8]),
    ({"B": 1024, "H": 128, "T": 256}, [128, 1, 8], [128, 1, 8]),
    ({"B": 1024, "H": 512}, [512, 8, 40], [512, 8, 40]),
    ({"B": 4096, "H": 600}, STEP, STEP),
    # The grid's.
    ({"B": 16, "H": 1024, "T": 1024, "kind": "bfloat16"}, [1024, 0, 8], [1024, 0, 8]),
    ({"B": 16, "H": 768, "T": 1024, "kind": "float16", "gates": 4}, [768, 0, 8], [768, 0, 8]),
    ({"B": 1, "H": 2048, "T": 1024, "gates": 4}, [2048, 0, 8], STEP),
    ({"B": 16, "H": 640, "T": 1024, "directions": 2}, [640, 0, 16], [640, 0, 16]),
    ({"B": 64, "H": 1024, "T": 1024}, STEP, STEP),
    # Strict float32.
    ({"B": 1, "H": 256, "T": 1024, "tf32": False}, [256, 8, 1], [256, 8, 1]),
    ({"B": 4, "H": 500, "tf32": False}, [512, 16, 1], [512, 16, 1]),
    ({"B": 4, "H": 500, "gates": 4, "tf32": False}, STEP, STEP),
    ({"B": 64, "H": 256, "T": 1024, "tf32": False}, [256, 4, 8], [256, 4, 8]),
    ({"B": 1024, "H": 256, "tf32": False}, [256, 4, 40], [256, 4, 40]),
    ({"B": 1024, "H": 512, "tf32": False}, STEP, STEP),
], ids=str)
def test_known_persistent_shapes(shape, forward, backward):
    shape = {"T": 90, "tf32": True} | shape
    assert persistent(plan(device=(90, 132), **shape)) == (forward, backward)


def test_lengths_change_no_more_than_the_memory_they_take():
    """Nothing at all where a block has that to spare."""
    same = 0
    for B, H, gates, (kind, tf32) in product(BATCHES, WIDTHS, (3, 4), KINDS):
        shape = {"kind": kind, "tf32": tf32, "T": 1000, "gates": gates}
        for one, other in zip(*(persistent(plan(B, H, (90, 132), packed=packed, **shape))
                                for packed in (False, True)), strict=True):
            if one[0] and not one[1]:  # the grid's know no lengths
                assert other == STEP
                continue
            assert one[0] == other[0] and other[2] <= one[2]
            same += one == other
    assert same > 0.9 * 2 * 2 * len(BATCHES) * len(WIDTHS) * len(KINDS)


@pytest.mark.parametrize(("shape", "projects"), [
    ({}, True), ({"features": 8}, True), ({"features": 9}, False), ({"kind": "float16"}, False),
    ({"kind": "bfloat16"}, False), ({"tf32": False}, False), ({"H": 513}, False),
], ids=str)
def test_few_features_are_multiplied_in_the_persistent_kernel(shape, projects):
    shape = {"B": 16, "H": 512, "device": (90, 132), "tf32": True, "T": 1000} | shape
    assert plan(**shape)["projects"] is projects


def test_clusters_that_the_device_does_not_fit_are_not_chosen():
    shape = {"B": 1, "H": 256, "device": (90, 132), "tf32": True, "T": 1000}
    assert plan(**shape)["persistent_forward"] == [256, 8, 8]
    assert plan(**shape, clusters=[66, 30, 0, 0])["persistent_forward"] == [256, 2, 8]
    assert plan(**shape | {"H": 512}, clusters=[66, 30, 0, 0])["persistent_forward"] == [512, 0, 8]
    strict = shape | {"tf32": False}
    assert plan(**strict | {"H": 512})["persistent_forward"] == [512, 16, 1]
    assert plan(**strict | {"H": 512, "device": (120, 170)})["persistent_forward"] == STEP
    assert plan(**strict, clusters=[66, 30, 0, 0])["persistent_forward"] == [256, 4, 8]
    assert persistent(plan(**strict, clusters=[66, 0, 0, 0])) == (STEP, STEP)


def test_more_clusters_at_once_take_fewer_sequences_each():
    sequences = [plan(1024, 256, (90, 132), tf32=True, T=90, clusters=[n, n // 2, n // 4, n // 8])[
        "persistent_forward"][2] for n in (32, 64, 128)]
    assert sequences == sorted(sequences, reverse=True) and sequences[0] > sequences[-1]


def test_unknown_type():
    with pytest.raises(ValueError, match="must be one of float32 float64 float16 bfloat16, not i8"):
        plan(1, 1, DEVICES[0], "i8")
