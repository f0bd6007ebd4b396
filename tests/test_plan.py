"""How a layer is run: plan_cpu is a pure function of shape and thread count, asked here about
machines of 1 to 64 threads that need not be there."""

from itertools import product

import pytest
from raw_kernels import kernels

THREADS = range(1, 65)
BATCHES = (1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 65, 100, 129, 1000, 1024, 4097)
WIDTHS = (1, 7, 64, 256, 512, 1024, 2048)
LONGEST_BLOCK = 64  # sequences whose states stay in a core's cache beside the weights
FEW_FEATURES = 32


def plan(B, H, threads, features=5, T=10**8, gates=3, directions=1, element=4, registers=32):
    return kernels.plan(T, B, features, H, H, gates, directions, element, threads, registers)


def loads(B, H, p, directions):
    """What each thread walks, in sequences times vectors of 16 units, when the tasks of all blocks
    and directions are dealt out evenly."""
    threads, parts = p["threads"], p["parts"]
    vectors = -(-H // 16)
    tasks = []
    for first in range(0, B, p["block"]):
        rows = min(p["block"], B - first)
        shares = [vectors * (k + 1) // parts - vectors * k // parts for k in range(parts)]
        tasks += directions * [rows * share for share in shares]
    n = len(tasks)
    return [sum(tasks[n * me // threads:n * (me + 1) // threads]) for me in range(threads)]


def speedup(B, H, threads, directions=1):
    """How much sooner the last of `threads` is done than one alone, meetings not counted."""
    p = plan(B, H, threads, directions=directions)
    return B * directions * -(-H // 16) / max(loads(B, H, p, directions))


@pytest.mark.parametrize("gates", [3, 4])
@pytest.mark.parametrize("element", [4, 8])
@pytest.mark.parametrize("directions", [1, 2])
def test_work_is_shared(directions, element, gates):
    """Blocks cover the batch; who walks alone has a block whose states stay in its cache."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        p = plan(B, H, threads, gates=gates, directions=directions, element=element)
        assert 1 <= p["block"] <= B
        assert p["parts"] > 1 or p["block"] <= LONGEST_BLOCK
        assert 1 <= p["parts"] <= -(-threads // directions)
        assert sum(loads(B, H, p, directions)) == B * directions * -(-H // 16)


def test_threads_scale():
    """By this model, large problems keep up to 64 threads busy: no thread has more than twice the
    ideal share of the work, and at powers of two no more than a third above it."""
    for (B, H), threads in product(
        [(1024, 256), (64, 256), (64, 512), (32, 1024), (16, 1024), (512, 64)], THREADS
    ):
        reached = speedup(B, H, threads)
        assert reached >= threads / 2, (B, H, threads, reached)
        if threads & (threads - 1) == 0:
            assert reached >= 0.75 * threads, (B, H, threads, reached)


def test_few_sequences_are_grouped():
    """Between one thread for each sequence and all threads at each: groups of both."""
    assert plan(64, 256, 64)["parts"] == 4
    assert plan(64, 256, 64)["block"] == 4


def test_wider_elements_and_more_gates_fill_the_cache_sooner():
    """Where larger weights leave threads to themselves, smaller ones do."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        smallest = plan(B, H, threads, element=4, gates=3)["parts"]
        for larger in ({"element": 8}, {"gates": 4}):
            assert smallest == 1 or plan(B, H, threads, **larger)["parts"] > 1
    assert any(plan(B, H, 2, element=4) != plan(B, H, 2, element=8)
               for B, H in product(BATCHES, WIDTHS))


@pytest.mark.parametrize(("shape", "threads", "parts", "block"), [
    # The article's: two layers of 256 units, batches of 1024 windows of 90 hours.
    ({"B": 1024, "H": 256}, 1, 1, 64),
    ({"B": 1024, "H": 256}, 2, 1, 64),
    ({"B": 1024, "H": 256}, 16, 1, 64),
    ({"B": 1024, "H": 256}, 64, 1, 16),
    ({"B": 64, "H": 256}, 2, 1, 32),
    # One sequence cannot be divided: its units are.
    ({"B": 1, "H": 256}, 1, 1, 1),
    ({"B": 1, "H": 256}, 2, 2, 1),
    ({"B": 1, "H": 256}, 64, 4, 1),
    # Unless each direction has its own thread.
    ({"B": 1, "H": 256, "directions": 2}, 2, 1, 1),
    ({"B": 1, "H": 256, "directions": 2}, 3, 2, 1),
    # 12 MB of weights overflow a core's cache; the threads share them.
    ({"B": 16, "H": 1024, "T": 50}, 1, 1, 16),
    ({"B": 16, "H": 1024, "T": 50}, 2, 2, 16),
], ids=str)
def test_known_shapes(shape, threads, parts, block):
    p = plan(threads=threads, **shape)
    assert (p["parts"], p["block"]) == (parts, block)


def test_chunks_of_backward_stay_in_cache():
    """Unless one step alone is too much, the gates' gradients of a chunk take 1 MB, or 256 rows."""
    for B, H, T in product(BATCHES, WIDTHS, (1, 16, 90, 1000)):
        chunk = plan(B, H, 2, T=T)["chunk"]
        rows = chunk * B
        assert 1 <= chunk <= T
        assert chunk == 1 or rows <= 256 or rows * 4 * H * 4 <= 1 << 20
        assert chunk == T or 4 * (rows + B) > 256, "chunks are no smaller than they must be"
    assert plan(64, 256, 2, T=90)["chunk"] == 4
    assert plan(1024, 256, 2, T=90)["chunk"] == 1


def test_threads_share_units_only_where_each_has_enough_of_them():
    """Every step ends at a barrier: more parts than the work can pay for would lose."""
    for B, H in product(BATCHES, WIDTHS):
        for threads in THREADS:
            p = plan(B, H, threads)
            parts = p["parts"]
            assert 1 <= parts <= min(threads, -(-H // 16))
            assert parts == 1 or p["block"] * 3 * H * (H + 5) >= 12000 * parts * parts
    assert [plan(1, H, 64)["parts"] for H in (16, 64, 256, 1024)] == [1, 1, 4, 16]


@pytest.mark.parametrize(("B", "H", "T", "threads"), [
    (1, 64, 50, 1), (1, 128, 50, 2), (1, 256, 50, 10), (8, 32, 10, 1), (1024, 256, 90, 64),
])
def test_short_calls_wake_few_threads(B, H, T, threads):
    p = plan(B, H, 64, T=T)
    assert p["threads"] == threads
    assert p["parts"] <= threads


def test_input_is_projected_ahead_only_where_that_pays():
    """Few features are multiplied in the step; many ahead of several, where few sequences walk
    together and would read the input's weights again at each step."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        for features in (1, 5, FEW_FEATURES):
            assert not plan(B, H, threads, features=features)["ahead"]
        p = plan(B, H, threads, features=512)
        assert bool(p["ahead"]) == (p["block"] < 16)


@pytest.mark.parametrize(("B", "T"), [(1, 0), (8, 0), (0, 0), (0, 5), (1, 1), (3, 1000)])
def test_of_nothing_there_is_a_plan(B, T):
    p = plan(B, 64, 2, T=T, features=64)
    assert 1 <= p["chunk"] <= max(1, T)
    assert 1 <= p["ahead"] <= max(1, T)


def narrow(B, H, threads=1, **options):
    return plan(B, H, threads, **{"element": 2, **options})["narrow_panels"]


def test_bfloat16_weights_stay_narrow_where_reading_takes_the_time():
    """One or two sequences wait for weights wherever these lie; more of them beyond L2 only, and
    with 16 registers no more than half a tile, as there are none left to part a full one's."""
    for registers in (16, 32):
        assert all(narrow(B, H, registers=registers) for B in (1, 2) for H in WIDTHS)
        assert narrow(4, 1024, registers=registers)
        assert not any(narrow(B, 256, registers=registers) for B in (3, 16, 64, 1024))
        assert not narrow(16, 512, threads=4, registers=registers)  # shared it fits
        for element in (4, 8):
            assert not any(narrow(B, 1024, element=element, registers=registers) for B in BATCHES)
    assert [narrow(16, 1024, registers=registers) for registers in (16, 32)] == [False, True]


def test_16_bits_share_the_work_as_float32():
    """They are computed with as float32, so that neither storage is slower for its partition."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        one, two = (plan(B, H, threads, element=element) for element in (2, 4))
        assert one | {"narrow_panels": False} == two


@pytest.mark.parametrize("threads", [-1, 0, 1, 64])
@pytest.mark.parametrize("shape", [{"B": 0, "H": 4}, {"B": 3, "H": 4, "T": 0},
                                   {"B": 0, "H": 0, "features": 0}], ids=str)
def test_empty_problems_have_a_plan(shape, threads):
    p = plan(threads=threads, **shape)
    assert p["block"] >= 1 and p["parts"] == 1 and p["chunk"] >= 1
