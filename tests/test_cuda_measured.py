"""What the plan makes of kernels' times that were measured on a GPU. Those here are invented."""

from itertools import product

import pytest
from cuda_kernels import load_kernels

kernels = load_kernels()
H200 = 90, 132
STEP, PERSISTENT = 0, 256  # units that a persistent kernel holds


def measured(step, persistent, H=256, B=16, T=256, gates=3, kind="float32", tf32=True,
             backward=False, device=H200):
    """Both kernels' microseconds at one place."""
    place = (*device, gates, kind, tf32, backward, 1, H, B, T)
    return [(*place, "step", step), (*place, "persistent", persistent)]


def grid(step, persistent, Bs=(1, 16, 64), Ts=(32, 256), **kind):
    """The same of functions of B and T."""
    return [row for B, T in product(Bs, Ts)
            for row in measured(step(B, T), persistent(B, T), B=B, T=T, **kind)]


def plan(table, H=256, B=16, T=256, gates=3, kind="float32", tf32=True, P=None, directions=1,
         packed=False, device=H200, asked="any"):
    return kernels.plan(T, B, 5, H, H if P is None else P, gates, directions, kind, tf32, packed,
                        *device, [], asked, table)


def told(table, **problem):
    """The units of the persistent kernel, and the reason, forward and backward."""
    p = plan(table, **problem)
    return [(p[f"persistent_{name}"][0], p[f"{name}_reason"]) for name in ("forward", "backward")]


def test_what_was_measured_goes_before_what_is_predicted():
    assert told([]) == [(PERSISTENT, "predicted")] * 2
    assert told(measured(1, 2)) == [(STEP, "measured"), (PERSISTENT, "predicted")]
    assert told(measured(2, 1)) == [(PERSISTENT, "measured"), (PERSISTENT, "predicted")]
    both = measured(1, 2) + measured(2, 1, backward=True)
    assert told(both) == [(STEP, "measured"), (PERSISTENT, "measured")]
    both = measured(2, 1) + measured(1, 2, backward=True)
    assert told(both) == [(PERSISTENT, "measured"), (STEP, "measured")]


def test_products_belong_to_the_kernel_that_is_chosen():
    table = measured(1, 2) + measured(1, 2, backward=True)
    assert [plan(t)["forward"] for t in ([], table)] == ["half", "tf32"]
    assert [plan(t)["backward"] for t in ([], table)] == ["half", "tf32"]


@pytest.mark.parametrize("asked", ["step", "persistent"])
def test_who_asks_for_a_kernel_gets_it(asked):
    table = measured(1, 2) if asked == "persistent" else measured(2, 1)
    units = STEP if asked == "step" else PERSISTENT
    assert told(table, asked=asked) == [(units, "asked")] * 2


@pytest.mark.parametrize("change", [
    {"gates": 4}, {"kind": "bfloat16"}, {"tf32": False}, {"device": (90, 114)},
    {"device": (100, 132)}, {"H": 257}, {"H": 127}, {"B": 17}, {"B": 15}, {"T": 255},
    {"packed": True}, {"P": 128}, {"directions": 2},
], ids=str)
def test_what_was_measured_speaks_for_nothing_else(change):
    assert told(measured(1, 2))[0][1] == "measured"
    assert told(measured(1, 2), **change)[0][1] == "predicted"


def test_tf32_matters_to_float32_alone():
    for tf32 in (False, True):
        table = measured(1, 2, kind="bfloat16", tf32=False)
        assert told(table, kind="bfloat16", tf32=tf32)[0] == (STEP, "measured")


def test_hidden_sizes_round_up_to_the_nearest_measured_one():
    table = measured(1, 2, H=256) + measured(2, 1, H=512) + measured(1, 2, H=1024)
    for shuffled in (table, table[::-1]):
        units = {H: told(shuffled, H=H)[0] for H in (128, 256, 257, 512, 513)}
        assert units == {128: (STEP, "measured"), 256: (STEP, "measured"),
                         257: (384, "measured"), 512: (512, "measured"), 513: (STEP, "measured")}


def test_between_batches_the_logarithm_of_time_is_linear():
    """That of the step kernels stays 10; the other's is B: they meet at 10, and so do these."""
    table = grid(lambda B, T: 10, lambda B, T: B)
    found = {B: told(table, B=B)[0] for B in (1, 2, 9, 11, 16, 40, 64)}
    assert {B: units for B, (units, _) in found.items()} == {
        1: PERSISTENT, 2: PERSISTENT, 9: PERSISTENT, 11: STEP, 16: STEP, 40: STEP, 64: STEP}
    assert {reason for _, reason in found.values()} == {"measured"}
    assert told(table, B=65)[0][1] == "predicted"  # beyond all that were measured


def test_two_directions_are_twice_as_many_sequences():
    table = grid(lambda B, T: 10, lambda B, T: B)
    assert [told(table, B=B, directions=2)[0][0] for B in (4, 6)] == [PERSISTENT, STEP]


def test_between_and_beyond_the_measured_steps():
    """A launch takes 100 however long the sequence: from 100 steps on it has paid."""
    table = grid(lambda B, T: 2 * T, lambda B, T: 100 + T, Ts=(32, 128, 1024))
    found = {T: told(table, T=T)[0] for T in (32, 64, 90, 110, 128, 1024, 1025, 100_000)}
    assert {T: units for T, (units, _) in found.items()} == {
        32: STEP, 64: STEP, 90: STEP, 110: PERSISTENT, 128: PERSISTENT, 1024: PERSISTENT,
        1025: PERSISTENT, 100_000: PERSISTENT}
    assert {reason for _, reason in found.values()} == {"measured"}
    assert told(table, T=31)[0][1] == "predicted"


def test_a_kernel_counts_where_all_neighbours_were_measured():
    table = grid(lambda B, T: 10, lambda B, T: 1)
    gap = [row for row in table if (row[8], row[9], row[10]) != (64, 32, "persistent")]
    assert told(gap, B=16, T=100)[0] == (PERSISTENT, "measured")
    assert told(gap, B=17, T=100)[0] == (PERSISTENT, "predicted")  # one kernel is no comparison
    assert told(gap, B=17, T=256)[0] == (PERSISTENT, "measured")


def test_a_kernel_that_does_not_fit_any_more_is_not_insisted_on():
    """The device answers that no cluster fits; the table is of a time when they did. Nor does it
    have the multiprocessors that the grid's kernel takes."""
    few = H200[0], 16
    p = kernels.plan(256, 16, 5, 512, 512, 3, 1, "float32", True, False, *few, [8, 0, 0, 0],
                     "any", measured(2, 1, H=512, device=few))
    assert p["persistent_forward"] == [0, 0, 0] and p["forward"] == "tf32"


def stack(table, T=256, B=16, layers=2, asked="any"):
    return kernels.plan_stack(T, B, 5, 256, 3, layers, "float32", True, *H200, [], asked, table)


def test_layers_at_the_same_time():
    """What two took, together and one after the other, speaks for more, and not for one."""
    def measured(apart, together, layers=2):
        place = (*H200, 3, "float32", True, False, layers, 256, 16, 256)
        return [(*place, "persistent", apart), (*place, "wavefront", together)]

    walk = [256, 8, 16]
    assert stack([]) == (walk, "predicted")
    for layers in (2, 3, 4):
        assert stack(measured(1, 2), layers=layers) == ([0, 0, 0], "measured")
        assert stack(measured(2, 1), layers=layers) == (walk, "measured")
    assert stack(measured(1, 2, layers=1)) == (walk, "predicted")
    assert stack(measured(1, 2), B=17) == (walk, "predicted")
    assert stack(measured(1, 2), asked="wavefront") == (walk, "asked")
    assert stack(measured(2, 1), asked="persistent") == ([0, 0, 0], "asked")
    assert told(measured(1, 2))[0] == (PERSISTENT, "predicted")


def test_an_invalid_kernel():
    with pytest.raises(ValueError, match="must be one of any step persistent"):
        plan([], asked="fast")
