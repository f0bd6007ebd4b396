"""How gatedrnn uses a GPU: streams, graphs, launches, memory, devices, threads, and that its
kernels touch nothing that is not theirs."""

import copy
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cuda_cases import DEVICE, IN, H, gradients_of, layer_pairs, module_and_input, needs_gpu
from helpers import LAYER_PAIRS, hidden, tensors
from torch.nn.utils.rnn import pack_sequence

import gatedrnn

pytestmark = needs_gpu

# Streams, graphs, launches


@layer_pairs
def test_side_stream(theirs, ours):
    """All work is on the caller's stream: input that comes late is still waited for."""
    module, x = module_and_input(ours, num_layers=2, bidirectional=True)
    expected = gradients_of(module, x)
    late = torch.full_like(x, float("nan"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        late.copy_(x)
        found = gradients_of(module, late)
        done = side.record_event()
    torch.cuda.current_stream().wait_event(done)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@layer_pairs
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graph_capture_and_replay(theirs, ours, train, dtype):
    """A graph computes what an eager call does, for inputs that come after the capture."""
    module, x = module_and_input(ours, num_layers=2, bidirectional=True, dtype=dtype)
    x = x.to(dtype)

    def call(value):
        if train:
            return gradients_of(module, value)
        with torch.no_grad():
            return list(tensors(module(value)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(x)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x.copy_(torch.randn_like(x))
        for parameter in module.parameters():
            parameter.data.mul_(0.9)
        graph.replay()
        for a, b in zip(captured, call(x), strict=True):
            assert torch.equal(a, b)


@layer_pairs
def test_graph_of_packed_input(theirs, ours):
    module = ours(IN, H, bidirectional=True, device=DEVICE)
    packed = pack_sequence([torch.randn(n, IN, device=DEVICE) for n in (7, 7, 4, 1)])
    with torch.no_grad():
        module(packed)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = list(tensors(module(packed)))
        packed.data.normal_()
        graph.replay()
        for a, b in zip(captured, tensors(module(packed)), strict=True):
            assert torch.equal(a, b)


def passes(ours, steps, **options):
    """Forward and backward of a layer as two calls; the state is given, as it costs kernels."""
    module, x = module_and_input(ours, steps, **options)
    x.requires_grad_()
    hx = hidden(module, 17, device=DEVICE)
    results = list(tensors(module(x, hx)))
    cotangents = [torch.randn_like(t) for t in results]
    wanted = [x, *module.parameters()]
    return (lambda: module(x, hx),
            lambda: torch.autograd.grad(results, wanted, cotangents, retain_graph=True))


LAUNCHES = [
    (ours, options, steps)
    for _, ours in LAYER_PAIRS
    for options in ({}, {"bidirectional": True}, {"proj_size": 5})
    if ours is gatedrnn.LSTM or "proj_size" not in options
    for steps in (1, 20, 300)
]


@pytest.mark.parametrize(("ours", "options", "steps"), LAUNCHES,
                         ids=lambda v: getattr(v, "__name__", str(v)))
def test_own_launches_of_a_pass(ours, options, steps, monkeypatch):
    monkeypatch.setenv("GATEDRNN_CUDA_KERNEL", "step")
    each = 2 if "proj_size" in options else 1
    for call in passes(ours, steps, **options):
        before = torch.ops.gatedrnn.cuda_launches()
        call()
        launches = torch.ops.gatedrnn.cuda_launches() - before
        assert steps <= launches <= each * steps + 8


@pytest.mark.parametrize(("ours", "options", "steps"), LAUNCHES,
                         ids=lambda v: getattr(v, "__name__", str(v)))
def test_all_kernels_of_a_pass(ours, options, steps):
    """With the matrix products and whatever torch adds: at most T + 8 a direction and pass."""
    each = 2 if "proj_size" in options else 1
    directions = 2 if "bidirectional" in options else 1
    for call in passes(ours, steps, **options):
        call()  # handles and workspaces
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        names = [event.name for event in profile.events()
                 if event.device_type == torch.autograd.DeviceType.CUDA
                 and not event.name.startswith(("Memcpy", "Memset"))]
        if not names:
            pytest.skip("torch's profiler sees no kernels on this machine")
        assert len(names) <= directions * (each * steps + 8), sorted(set(names))


# Memory, devices, threads


@layer_pairs
def test_input_and_weights_on_different_devices(theirs, ours):
    module = ours(IN, H)
    with pytest.raises((RuntimeError, ValueError), match=r"cpu.*cuda|cuda.*cpu"):
        module(torch.zeros(2, 3, IN, device=DEVICE))
    with pytest.raises((RuntimeError, ValueError), match=r"cpu.*cuda|cuda.*cpu"):
        module.cuda()(torch.zeros(2, 3, IN))


@layer_pairs
def test_another_gpu_than_the_current_one(theirs, ours):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    module = ours(IN, H, num_layers=2)
    x = torch.randn(7, 17, IN)
    results = []
    for device in ("cuda:0", "cuda:1"):
        assert torch.cuda.current_device() == 0
        results.append(gradients_of(copy.deepcopy(module).to(device), x.to(device)))
        assert all(t.device == torch.device(device) for t in results[-1])
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(*results, strict=True))
    with pytest.raises((RuntimeError, ValueError), match=r"cuda:[01].*cuda:[01]"):
        module.to("cuda:0")(x.to("cuda:1"))


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@layer_pairs
def test_too_little_memory(theirs, ours, train):
    """It is torch's error, and the next call works."""
    module = ours(1, 1024, device=DEVICE)
    huge = torch.zeros(1, 1, 1, device=DEVICE).expand(1 << 17, 1 << 10, 1)  # y alone: 512 GiB
    with torch.set_grad_enabled(train), pytest.raises(torch.OutOfMemoryError):
        module(huge)
    torch.cuda.empty_cache()
    assert module(torch.zeros(2, 3, 1, device=DEVICE))[0].shape == (2, 3, 1024)


@layer_pairs
def test_more_elements_than_32_bits_can_count(theirs, ours):
    """The last steps lie beyond 2^31 elements; a run that begins there computes the same."""
    T, B, hidden_size = 2052, 1024, 1024
    needed = 40 << 30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free GPU memory")
    module = ours(1, hidden_size, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(T, B, 1, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        y, last = module(x)
        assert y.numel() > 1 << 31 and not y[-1].isnan().any()
        half, state = module(x[: T // 2])
        assert torch.equal(y[: T // 2], half)
        del half
        # What one run carries in float32 the other hands over in bfloat16.
        rest, final = module(x[T // 2 :], state)
        near = {"rtol": 0, "atol": 0.05}
        torch.testing.assert_close(y[-3:].float(), rest[-3:].float(), **near)
        for a, b in zip(tensors(last), tensors(final), strict=True):
            torch.testing.assert_close(a.float(), b.float(), **near)
    torch.cuda.empty_cache()


@layer_pairs
def test_two_threads_at_once(theirs, ours):
    """Autograd runs backward in a thread of its own, and users have several."""
    module, x = module_and_input(ours, num_layers=2)
    expected = gradients_of(module, x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: gradients_of(module, x), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# compute-sanitizer

SANITIZED = """
import torch, gatedrnn
for kind, options in ((gatedrnn.GRU, {}), (gatedrnn.LSTM, {}), (gatedrnn.LSTM, {"proj_size": 5})):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
            torch.backends.cudnn.rnn.fp32_precision = precision
            module = kind(5, 33, bidirectional=True, device="cuda", dtype=dtype, **options)
            x = torch.randn(3, 17, 5, device="cuda", dtype=dtype, requires_grad=True)
            module(x)[0].sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_sanitizer(tool):
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("needs compute-sanitizer")
    # Only our kernels are instrumented: their names hold their namespace. Without torch's cache
    # every tensor ends where its allocation does.
    usage = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    only = next((option for option in ("--kernel-regex", "--kernel-name") if option in usage), None)
    filters = [only, "kns=gatedrnn"] if only else []
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", *filters, sys.executable, "-c",
         SANITIZED],
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True, text=True, timeout=90, check=False,
    )
    output = done.stdout + done.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer says of this device: Device not supported")
    assert done.returncode == 0, output[-4000:]
    assert "SUMMARY: 0 " in output, output[-4000:]
