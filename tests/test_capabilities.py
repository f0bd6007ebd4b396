"""The README's table of capabilities: ours have them, and the table is what the probes give."""

import warnings

import capabilities
import pytest

import gatedrnn


@pytest.mark.parametrize("row", capabilities.PROBES)
def test_row(row):
    ours = "yes"
    if row in capabilities.REFUSED:
        ours = capabilities.outcome(row, True)
    else:
        for cls in (gatedrnn.GRU, gatedrnn.LSTM):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tools' own
                capabilities.PROBES[row](cls)
    assert capabilities.line(row, ours) in capabilities.published().splitlines(keepends=True)


def test_table_is_of_these_rows_and_this_torch():
    head = capabilities.head()
    published = capabilities.published()
    assert published.startswith(head)
    rows = [line.split(" | ")[0] for line in published.removeprefix(head).splitlines()]
    assert rows == [f"| {row}" for row in capabilities.PROBES]
