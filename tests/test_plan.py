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


def plan(B, H, threads, features=5, T=10**8, gates=3, directions=1, element=4):
    return kernels.plan(T, B, features, H, H, gates, directions, element, threads)


def loads(B, block, directions, threads):
    """Sequences that each thread walks, when the blocks of all directions are dealt out evenly."""
    blocks = -(-B // block)
    items = [min(block, B - n // directions * block) for n in range(blocks * directions)]
    count = len(items)
    return [sum(items[count * me // threads:count * (me + 1) // threads]) for me in range(threads)]


@pytest.mark.parametrize("gates", [3, 4])
@pytest.mark.parametrize("element", [4, 8])
@pytest.mark.parametrize("directions", [1, 2])
def test_work_is_shared_evenly(directions, element, gates):
    """By rows: blocks cover the batch and no thread has more than its even share but for rounding.

    Two directions on an odd number of threads are dealt out as on one thread more, so that a thread
    can meet two blocks where the others have one.
    """
    by_rows = 0
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        p = plan(B, H, threads, gates=gates, directions=directions, element=element)
        if not p["by_rows"]:
            assert p["block"] == B
            assert threads > directions, "a thread alone in its direction has nobody to share with"
            continue
        by_rows += 1
        assert 1 <= p["block"] <= min(B, LONGEST_BLOCK)
        each = loads(B, p["block"], directions, threads)
        assert sum(each) == B * directions
        share = -(-B * directions // threads)
        odd = directions == 2 and threads % 2
        limit = 2 * share if odd else share + max(1, -(-share // LONGEST_BLOCK)) - 1
        assert max(each) <= limit, (B, H, threads, p)
    assert by_rows > 1000


@pytest.mark.parametrize("directions", [1, 2])
def test_more_threads_never_turn_units_back_into_rows(directions):
    for B, H in product(BATCHES, WIDTHS):
        rows = [plan(B, H, threads, directions=directions)["by_rows"] for threads in THREADS]
        assert rows == sorted(rows, reverse=True), (B, H)
        assert all(rows[:directions])


def test_larger_batches_never_turn_rows_into_units():
    for H, threads in product(WIDTHS, THREADS):
        rows = [plan(B, H, threads)["by_rows"] for B in BATCHES]
        assert rows == sorted(rows), (H, threads)


def test_wider_elements_and_more_gates_fill_the_cache_sooner():
    """Where larger weights still leave threads to themselves, smaller ones do."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        smallest = plan(B, H, threads, element=4, gates=3)["by_rows"]
        for larger in ({"element": 8}, {"gates": 4}):
            assert smallest or not plan(B, H, threads, **larger)["by_rows"]
    assert any(plan(B, H, 2, element=4) != plan(B, H, 2, element=8)
               for B, H in product(BATCHES, WIDTHS))


@pytest.mark.parametrize(("shape", "threads", "by_rows", "block"), [
    # The article's: two layers of 256 units, batches of 1024 windows of 90 hours.
    ({"B": 1024, "H": 256}, 1, True, 64),
    ({"B": 1024, "H": 256}, 2, True, 64),
    ({"B": 1024, "H": 256}, 16, True, 64),
    ({"B": 1024, "H": 256}, 64, True, 16),
    ({"B": 64, "H": 256}, 2, True, 32),
    # One sequence cannot be divided: its units are.
    ({"B": 1, "H": 256}, 1, True, 1),
    ({"B": 1, "H": 256}, 2, False, 1),
    ({"B": 1, "H": 256}, 64, False, 1),
    # Unless each direction has its own thread.
    ({"B": 1, "H": 256, "directions": 2}, 2, True, 1),
    ({"B": 1, "H": 256, "directions": 2}, 3, False, 1),
    # 12 MB of weights overflow a core's cache; the threads share them.
    ({"B": 16, "H": 1024, "T": 50}, 1, True, 16),
    ({"B": 16, "H": 1024, "T": 50}, 2, False, 16),
], ids=str)
def test_known_shapes(shape, threads, by_rows, block):
    p = plan(threads=threads, **shape)
    assert (p["by_rows"], p["block"]) == (by_rows, block)


def test_threads_share_units_only_where_each_has_enough_of_them():
    """Every step ends at a barrier: more parts than the work can pay for would lose."""
    for B, H in product(BATCHES, WIDTHS):
        parts = [plan(B, H, threads)["parts"] for threads in THREADS]
        assert parts == sorted(parts)
        for threads, p in zip(THREADS, parts, strict=True):
            assert 1 <= p <= min(threads, -(-H // 16))
            assert p == 1 or B * 3 * H * (H + 5) >= 12000 * p * p
    assert [plan(1, H, 64)["parts"] for H in (16, 64, 256, 1024)] == [1, 1, 4, 16]


@pytest.mark.parametrize(("B", "H", "T", "threads"), [
    (1, 64, 50, 1), (1, 128, 50, 1), (1, 256, 50, 4), (8, 32, 10, 1), (1024, 256, 90, 64),
])
def test_short_calls_wake_few_threads(B, H, T, threads):
    p = plan(B, H, 64, T=T)
    assert p["threads"] == threads
    assert p["parts"] <= threads
    if threads == 1:
        assert p["by_rows"]


def test_input_is_projected_ahead_only_where_that_pays():
    """Few features are multiplied in the step; many ahead of it, where few sequences walk together
    and would read the input's weights again at each step."""
    for B, H, threads in product(BATCHES, WIDTHS, THREADS):
        for features in (1, 5, FEW_FEATURES):
            assert not plan(B, H, threads, features=features)["project_first"]
        p = plan(B, H, threads, features=512)
        assert p["project_first"] == (p["block"] < 16)


@pytest.mark.parametrize("threads", [-1, 0, 1, 64])
@pytest.mark.parametrize("shape", [{"B": 0, "H": 4}, {"B": 3, "H": 4, "T": 0},
                                   {"B": 0, "H": 0, "features": 0}], ids=str)
def test_empty_problems_have_a_plan(shape, threads):
    p = plan(threads=threads, **shape)
    assert p["block"] >= 0 and (p["block"] >= 1 or not p["by_rows"])
