"""Cases nobody thought of: shapes, flags, and what requires or receives a gradient, at random.

The draws are derandomised: every run sees the same cases. Sizes stay small, where a wrong index
or a wrong branch shows; sizes at which sums grow long are in test_layers.py. A failing case is
reported as drawn: it is small already, and shrinking it would take minutes.
"""

import torch
from equivalence import Case, Trial, check
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

bounded = settings(
    deadline=None, derandomize=True, max_examples=30, database=None,
    phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow],
)
small = st.integers(1, 6)
dtypes = st.sampled_from([torch.float32, torch.float64])
layouts = st.sampled_from(["plain", "sliced", "stepped", "transposed", "expanded"])


@st.composite
def layer_cases(draw):
    cell = draw(st.sampled_from(["gru", "lstm"]))
    form = draw(st.sampled_from(["padded", "padded", "sorted", "unsorted", "unbatched"]))
    batch = 1 if form == "unbatched" else draw(small)
    hidden = draw(st.sampled_from([2, 5, 8, 15, 16, 17, 24, 33]))  # around vector widths
    projected = cell == "lstm" and draw(st.booleans())
    return Case(
        cell,
        (draw(small), batch, draw(small), hidden),
        draw(dtypes),
        layers=draw(st.integers(1, 2)),
        bidirectional=draw(st.booleans()),
        proj=draw(st.integers(1, hidden - 1)) if projected else 0,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        form=form,
        layout=draw(layouts),
        states=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def cell_cases(draw):
    return Case(
        draw(st.sampled_from(["gru_cell", "lstm_cell"])),
        (draw(small), draw(small), draw(st.integers(3, 40))),
        draw(dtypes),
        bias=draw(st.booleans()),
        layout=draw(layouts),
        states=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def check_in_part(case, data):
    """The case with some of its gradients wanted and some of its results in the loss."""
    note(str(case))
    trial = Trial(case)
    names = [*trial.data.inputs, *dict(trial.ours.named_parameters())]
    wrt = data.draw(st.lists(st.sampled_from(names), unique=True), "wrt")
    results = sorted(trial.data.cotangents)
    outputs = data.draw(st.lists(st.sampled_from(results), min_size=1, unique=True), "outputs")
    check(case, wrt=wrt, outputs=outputs, threads=(2,))


@bounded
@given(layer_cases())
def test_layers(case):
    check(case, threads=(1,))


@bounded
@given(layer_cases(), st.data())
def test_layers_in_part(case, data):
    check_in_part(case, data)


@bounded
@given(cell_cases())
def test_cells(case):
    check(case, threads=(1,))


@bounded
@given(cell_cases(), st.data())
def test_cells_in_part(case, data):
    check_in_part(case, data)
