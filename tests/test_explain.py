"""gatedrnn.explain: what it says is what plan.cpp decides, for CPU tensors and for any GPU."""

import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import gatedrnn
from gatedrnn import raw

H200 = {"architecture": 90, "multiprocessors": 132}


@pytest.fixture
def precision():
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    yield lambda value: setattr(rnn, "fp32_precision", value)
    rnn.fp32_precision = before


def test_article_shape_on_h200(precision):
    precision("tf32")
    gru = gatedrnn.GRU(5, 256, num_layers=2, batch_first=True)
    text = gatedrnn.explain(gru, torch.zeros(1024, 90, 5), **H200)
    assert text.splitlines()[0] == (
        "GRU on a GPU of architecture 90, 132 multiprocessors, float32:"
    )
    assert "layer 0: T=90, B=1024, I=5, H=256" in text
    assert "layer 1: T=90, B=1024, I=256, H=256" in text
    held = "persistent, 256 units held by clusters of 2, each with"
    assert text.count(f"float16 operands and float32 sums; {held} 16 sequences") == 4
    assert text.count("predicted, not measured") == 2
    assert text.count("cuBLAS, TF32") == 2


@pytest.mark.parametrize("value", ["ieee", "none"])
def test_strict_precision(precision, value):
    precision(value)
    text = gatedrnn.explain(gatedrnn.LSTM(5, 64), torch.zeros(9, 4, 5), **H200)
    assert "TF32" not in text
    assert text.count("float32 multiply-adds") == 2
    assert "cuBLAS, float32" in text
    text = gatedrnn.explain(gatedrnn.LSTM(5, 200), torch.zeros(9, 4, 5), **H200)
    held = "persistent, 256 units held by clusters of 8, each with one sequence"
    assert text.count(f"float32 multiply-adds; {held}") == 2
    text = gatedrnn.explain(gatedrnn.GRU(5, 200), torch.zeros(90, 512, 5), **H200)
    held = "persistent, 256 units held by clusters of 4, each with 24 sequences"
    assert text.count(f"each operand two of float16, and float32 sums; {held}") == 2


@pytest.mark.parametrize(("dtype", "architecture", "forward", "backward"), [
    (torch.float64, 90, "float64 multiply-adds", "float64 multiply-adds"),
    (torch.float16, 90, "float16 operands", "TF32"),
    (torch.float16, 75, "float16 operands", "float32 multiply-adds"),
    (torch.bfloat16, 80, "bfloat16 operands", "bfloat16 operands"),
    (torch.bfloat16, 75, "float32 multiply-adds", "float32 multiply-adds"),
    (torch.float32, 75, "float32 multiply-adds", "float32 multiply-adds"),
])
def test_dtypes_and_architectures(dtype, architecture, forward, backward):
    text = gatedrnn.explain(gatedrnn.GRU(3, 8, dtype=dtype), torch.zeros(2, 4, 3, dtype=dtype),
                            architecture=architecture, multiprocessors=40)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert forward in lines["forward"]
    assert backward in lines["backward"]


def test_kernels_and_tiles_can_be_told(monkeypatch, precision):
    precision("tf32")
    gru, x = gatedrnn.GRU(5, 64), torch.zeros(9, 4, 5)
    assert gatedrnn.explain(gru, x, **H200).count("persistent, 64 units") == 2
    assert "persistent" not in gatedrnn.explain(gru, x[:2], **H200)
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "persistent")
    assert gatedrnn.explain(gru, x[:2], **H200).count("persistent, 64 units") == 2
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "square")
    with pytest.raises(RuntimeError, match="step, persistent, grid or wavefront, not square"):
        gatedrnn.explain(gru, x, **H200)
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "grid")
    held = "persistent, 128 units held by groups of 8 blocks of the grid, each with 8 sequences"
    assert gatedrnn.explain(gru, x, **H200).count(held) == 2
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")
    assert gatedrnn.explain(gru, x, **H200).count("tiles of 16 sequences") == 2
    monkeypatch.setenv("GATEDRNN_CUDA_TILE", "wide")
    assert gatedrnn.explain(gru, x, **H200).count("tiles of 64 sequences") == 2
    monkeypatch.setenv("GATEDRNN_CUDA_TILE", "huge")
    with pytest.raises(RuntimeError, match="GATEDRNN_CUDA_TILE must be narrow or wide, not huge"):
        gatedrnn.explain(gru, x, **H200)


def test_layers_at_the_same_time(monkeypatch, precision):
    precision("tf32")
    lstm, x = gatedrnn.LSTM(5, 64, num_layers=3, dropout=0.1).eval(), torch.zeros(90, 4, 5)
    text = gatedrnn.explain(lstm, x, **H200)
    assert "all layers: CUDA wavefront kernel, one launch forward" in text
    assert text.count("forward: ") == 1 and text.count("backward: ") == 3
    assert "wavefront, 64 units held by clusters of 1, each with 8 sequences" in text
    assert "    forward predicted, not measured, to be fastest" in text
    assert "wavefront" not in gatedrnn.explain(lstm.train(), x, **H200)
    lstm.dropout = 0.0
    lstm.recompute = True
    assert "wavefront" not in gatedrnn.explain(lstm, x, **H200)
    lstm.recompute = False
    assert "wavefront" not in gatedrnn.explain(lstm, pack_sequence([x[:, 0]]), **H200)
    assert "wavefront" not in gatedrnn.explain(lstm, x.double(), **H200)
    wide = gatedrnn.GRU(5, 256, 2)
    assert "wavefront" not in gatedrnn.explain(wide, torch.zeros(90, 1024, 5), **H200)
    for other in (gatedrnn.GRU(5, 64, 2, bidirectional=True), gatedrnn.LSTM(5, 64, 2, proj_size=8)):
        assert "wavefront" not in gatedrnn.explain(other, x, **H200)
    monkeypatch.setenv("GATEDRNN_CUDA_TF32", "real")  # which is float32's alone
    assert "wavefront" not in gatedrnn.explain(lstm, x, **H200)
    assert "wavefront" in gatedrnn.explain(lstm, x.bfloat16(), **H200)
    monkeypatch.delenv("GATEDRNN_CUDA_TF32")
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "wavefront")
    assert "forward asked for by the environment" in gatedrnn.explain(lstm, x, **H200)
    assert "wavefront" not in gatedrnn.explain(gatedrnn.LSTM(5, 64), x, **H200)


def test_why_a_kernel_is_chosen(monkeypatch, precision):
    precision("tf32")
    gru, x = gatedrnn.GRU(5, 64), torch.zeros(9, 4, 5)
    assert "both predicted, not measured, to be fastest" in gatedrnn.explain(gru, x, **H200)
    explained = sys.modules[gatedrnn.explain.__module__]
    values = explained._values
    with monkeypatch.context() as patch:  # no GPU has been measured
        patch.setattr(explained, "_values",
                      lambda plan: values(plan) | {"backward_reason": "measured"})
        assert gatedrnn.explain(gru, x, **H200).splitlines()[-1].strip() == (
            "forward predicted, not measured, to be fastest, backward measured to be fastest")
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")
    assert "both asked for by the environment" in gatedrnn.explain(gru, x, **H200)


def test_real_tf32_can_be_told(monkeypatch, precision):
    precision("tf32")
    gru, x = gatedrnn.GRU(5, 64), torch.zeros(90, 4, 5)
    for value, product in (("scaled", "float16 operands"), ("real", "operands rounded to TF32")):
        monkeypatch.setenv("GATEDRNN_CUDA_TF32", value)
        assert gatedrnn.explain(gru, x, **H200).count(product) == 2
    half = gatedrnn.GRU(5, 64, dtype=torch.float16)
    assert gatedrnn.explain(half, x.half(), **H200).count("persistent, 64 units") == 2
    precision("ieee")
    assert gatedrnn.explain(gru, x, **H200).count("float32 multiply-adds; persistent") == 2
    monkeypatch.setenv("GATEDRNN_CUDA_TF32", "yes")
    with pytest.raises(RuntimeError, match="GATEDRNN_CUDA_TF32 must be real or scaled, not yes"):
        gatedrnn.explain(gru, x, **H200)


def test_a_pass_alone_may_be_persistent(precision):
    precision("tf32")
    text = gatedrnn.explain(gatedrnn.GRU(5, 64), torch.zeros(5, 16, 5), **H200)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert "persistent" in lines["forward"]
    assert "TF32; tiles of 16" in lines["backward"]
    assert "CUDA step kernels" in text
    assert "CUDA persistent kernels" in text


def test_packed_sequences_take_persistent_kernels_too(precision):
    precision("tf32")
    x = pack_sequence([torch.zeros(9, 5), torch.zeros(4, 5)])
    assert "persistent" in gatedrnn.explain(gatedrnn.GRU(5, 64), x, **H200)


def test_projection_takes_two_launches():
    lstm = gatedrnn.LSTM(5, 64, proj_size=8, bidirectional=True)
    text = gatedrnn.explain(lstm, torch.zeros(9, 4, 5), **H200)
    assert "two launches a step for all directions" in text


def test_cpu():
    gru = gatedrnn.GRU(40, 64, num_layers=2, bidirectional=True)
    text = gatedrnn.explain(gru, pack_sequence([torch.zeros(7, 40), torch.zeros(4, 40)]))
    assert "GRU on cpu, float32" in text
    assert "layer 0: T=7, B=2, I=40, H=64: CPU kernels" in text
    assert "layer 1: T=7, B=2, I=128, H=64" in text


@pytest.mark.parametrize(("dtype", "batch", "narrow"), [
    (torch.bfloat16, 1, True), (torch.bfloat16, 16, False), (torch.float16, 1, False),
], ids=str)
def test_16_bits_on_the_cpu(dtype, batch, narrow):
    """Weights stay bfloat16 where products take it, or else where reading them takes the time."""
    text = gatedrnn.explain(gatedrnn.GRU(40, 64), torch.zeros(7, batch, 40, dtype=dtype))
    assert f"{str(dtype).removeprefix('torch.')} storage, float32 arithmetic" in text
    pairs = dtype is torch.bfloat16 and raw.instruction_set() == "avx512bf16"
    assert ("products of pairs of bfloat16" in text) == pairs
    assert ("weights read in bfloat16" in text) == (narrow and not pairs)


def test_an_empty_sequence():
    assert "T=0" in gatedrnn.explain(gatedrnn.GRU(64, 64), torch.zeros(0, 3, 64))


def test_other_paths():
    x = torch.zeros(2, 3, 4, dtype=torch.complex64)
    assert "the reference" in gatedrnn.explain(gatedrnn.GRU(4, 4), x)
    narrow = gatedrnn.explain(gatedrnn.GRUCell(4, 4), torch.zeros(3, 4))
    assert "weights transposed" in narrow
    assert "one pass over the weights" in narrow
    wide = gatedrnn.explain(gatedrnn.LSTMCell(900, 900), torch.zeros(10, 900, dtype=torch.bfloat16))
    assert "computed in float32, weights read as they lie" in wide
    assert "tiled products" in wide
    assert "two products by torch" in gatedrnn.explain(
        gatedrnn.LSTMCell(4, 4), torch.zeros(3, 4), **H200)


def test_refusals():
    with pytest.raises(TypeError, match="explain takes a recurrent module of gatedrnn"):
        gatedrnn.explain(torch.nn.GRU(2, 2), torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match="together or not at all"):
        gatedrnn.explain(gatedrnn.GRU(2, 2), torch.zeros(1, 1, 2), architecture=90)
