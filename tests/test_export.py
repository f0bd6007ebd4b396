"""torch.export: one node a layer whatever the length, programs that are decomposed and packaged."""

import pytest
import torch
from helpers import assert_like, error_of, layers, tensors
from torch import nn
from torch.export import Dim, export
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import gatedrnn

IN, H = 3, 4
# Of torch's own.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "FutureWarning")]


class Model(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.first = nn.Linear(IN, IN)
        self.rnn = cls(IN, H, 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return torch.relu(self.rnn(self.first(x))[0])


def nodes(program):
    return [str(n.target) for n in program.graph.nodes if "gatedrnn" in str(n.target)]


def exported(model, strict=False):
    dims = ({0: Dim("batch"), 1: Dim("length")},)
    return export(model, (torch.randn(2, 5, IN),), dynamic_shapes=dims, strict=strict)


@layers
@pytest.mark.parametrize("strict", [False, True])
def test_a_node_a_layer_of_any_length_and_batch(theirs, ours, strict):
    model = Model(ours)
    program = exported(model, strict)
    decomposed = program.run_decompositions()
    assert len(nodes(program)) == len(nodes(decomposed)) == 2
    for batch, length in ((2, 5), (4, 9), (1, 1)):
        x = torch.randn(batch, length, IN)
        for p in (program, decomposed):
            assert_like(p.module()(x), model(x), rtol=0, atol=0)


def test_cells_of_any_batch():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.lstm = gatedrnn.GRUCell(IN, H), gatedrnn.LSTMCell(H, H)

        def forward(self, x):
            state = None
            for k in range(2):
                state = self.lstm(self.gru(x[k]), state)
            return state

    model = Steps()
    program = export(model, (torch.randn(2, 3, IN),), dynamic_shapes=({1: Dim("batch")},))
    assert len(nodes(program)) == 4
    x = torch.randn(2, 7, IN)
    assert_like(program.module()(x), model(x), rtol=0, atol=0)


@layers
def test_packed_input(theirs, ours):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ours(IN, H, bidirectional=True)

        def forward(self, *parts):
            packed = parts[0] if len(parts) == 1 else PackedSequence(*parts)
            output, hn = self.rnn(packed)
            return output.data, list(tensors(hn))

    model = Packed()

    def packed(*lengths, **options):
        return pack_sequence([torch.randn(n, IN) for n in lengths], **options)

    first = packed(3, 6, 2, 2, 1, enforce_sorted=False)
    dims = tuple({0: Dim(name)} for name in ("rows", "steps", "batch", "batch"))
    program = export(model, tuple(first), dynamic_shapes=(dims,))
    for p in (first, packed(4, 4, 2, enforce_sorted=False)):
        assert_like(program.module()(*p), model(p))
    # In order, where batch_sizes alone tell of the batch.
    p = packed(3, 2)
    assert_like(export(model, (p,)).module()(p), model(p))


@layers
def test_packing_inside_is_refused_in_words(theirs, ours):
    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ours(IN, H)

        def forward(self, x, lengths):
            return self.rnn(pack_padded_sequence(x, lengths, batch_first=True))[1]

    error = error_of(lambda: export(Packs(), (torch.randn(2, 5, IN), torch.tensor([5, 3]))))
    assert "torch.export cannot record pack_padded_sequence" in str(error)


def test_ahead_of_time_compilation(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # Inductor is stricter there

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.lstm = gatedrnn.GRU(IN, H), gatedrnn.LSTM(H, H)

        def forward(self, x):
            return self.lstm(self.gru(x)[0])[0]

    model, dims = Model(), ({0: Dim("length"), 1: Dim("batch")},)
    with torch.no_grad():
        program = export(model, (torch.randn(5, 2, IN),), dynamic_shapes=dims)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for shape in ((5, 2, IN), (9, 4, IN)):
            x = torch.randn(shape)
            assert_like(loaded(x), model(x), strides=False)
