"""The bridge between torch and Warp: gradients, threads, torch.compile, the choice of a backend, and its manners."""

import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import warp as wp
from torch import Tensor

from geom.errors import ShapeError
from geom.kernels import bridge
from geom.kernels.native import DTYPES
from geom.kernels.voxels import segment_mean

ROOT = Path(__file__).resolve().parents[2]


def _cubes_kernel(real: type) -> wp.Kernel:
    @wp.kernel
    def cubes(first: wp.int32, x: wp.array(dtype=real), scale: real, shift: wp.int32, out: wp.array(dtype=real)):
        i = first + wp.tid()
        out[i] = scale * x[i] * x[i] * x[i] + real(shift)

    return cubes


CUBES = {dtype: _cubes_kernel(real) for dtype, real in DTYPES.items()}
cubes = bridge.operator(
    "test_cubes",
    "(Tensor x, float scale, int shift) -> Tensor",
    kernel=CUBES.__getitem__,
    output=lambda x, scale, shift: x.new_empty(x.shape),
    items=lambda x, scale, shift: x.numel(),
    differentiable=(0,),
)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def segments() -> tuple[Tensor, Tensor]:
    """An order with repeats and omissions, and starts with an empty segment."""
    return torch.tensor([4, 0, 2, 2, 5, 1]), torch.tensor([0, 2, 2, 5, 6])


OPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "cubes": (lambda x: cubes(x, 1.5, -1), (7,)),  # -1 and a fraction: arguments that a careless bridge loses
    "segment_mean": (lambda x: segment_mean(x, *segments()), (6, 3)),
}
each_op = pytest.mark.parametrize(("op", "shape"), OPS.values(), ids=OPS)


# --- values and gradients --------------------------------------------------------------------------------------------


def test_values(dtype: torch.dtype) -> None:
    x = random(7, dtype=dtype)
    out = cubes(x, 1.5, -1)
    assert out.dtype == dtype and torch.allclose(out, 1.5 * x**3 - 1, rtol=4 * torch.finfo(dtype).eps)
    values, (order, starts) = random(6, 3, dtype=dtype), segments()
    want = torch.stack([values[[4, 0]].mean(0), torch.zeros(3, dtype=dtype), values[[2, 2, 5]].mean(0), values[1]])
    assert torch.allclose(segment_mean(values, order, starts), want, rtol=4 * torch.finfo(dtype).eps)


@each_op
def test_gradcheck(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(op, (random(*shape).requires_grad_(),))


@each_op
def test_gradients_of_float32(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = random(*shape)
    low, high = x.float().requires_grad_(), x.clone().requires_grad_()
    (a,), (b,) = (torch.autograd.grad(op(t).square().sum(), t) for t in (low, high))
    assert a.dtype == torch.float32 and torch.allclose(a.double(), b, rtol=1e-5, atol=1e-6)


@each_op
def test_an_output_used_twice_and_two_backward_passes(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = random(*shape).requires_grad_()
    once = torch.autograd.grad(op(x).sum(), x)[0]
    y = op(x)
    loss = y.sum() + y.sum()
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], 2 * once)
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad is not None and torch.equal(x.grad, 4 * once)


@each_op
def test_forward_leaves_grad_alone(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = random(*shape).requires_grad_()
    kept = torch.full(shape, 3.0, dtype=torch.float64)
    x.grad = kept
    copy = x.detach().clone()
    op(x)
    assert x.grad is kept and torch.equal(kept, torch.full_like(kept, 3.0)) and torch.equal(x, copy)


@each_op
def test_inputs_and_gradients_that_are_not_contiguous(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    wide = random(*shape[::-1]).mT if len(shape) == 2 else random(2 * shape[0])[::2]
    assert not wide.is_contiguous()
    assert torch.equal(op(wide), op(wide.contiguous()))
    weight = random(*op(wide).shape[::-1], seed=1)
    weight = weight.mT if weight.ndim == 2 else weight.repeat_interleave(2)[::2]
    (a,), (b,) = (
        torch.autograd.grad(op(t), t, g)
        for t, g in ((wide.detach().requires_grad_(), weight), (wide.clone().requires_grad_(), weight.contiguous()))
    )
    assert torch.equal(a, b)


def test_empty_inputs(dtype: torch.dtype) -> None:
    x = torch.zeros(0, dtype=dtype, requires_grad=True)
    assert torch.autograd.grad(cubes(x, 1.0, 0).sum(), x)[0].shape == (0,)
    none, starts = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    for rows in (0, 4):  # segments that hold nothing
        values = random(rows, 2, dtype=dtype).requires_grad_()
        mean = segment_mean(values, none, starts)
        assert torch.equal(mean, torch.zeros(2, 2, dtype=dtype))
        assert not torch.autograd.grad(mean.sum(), values)[0].any()
    assert segment_mean(random(4, 2, dtype=dtype), none, starts[:1]).shape == (0, 2)


@each_op
def test_a_second_derivative_is_an_error_not_a_wrong_number(
    op: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    x = random(*shape).requires_grad_()
    (g,) = torch.autograd.grad(op(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="adjoint"):
        torch.autograd.grad(g.sum(), x)


# --- as torch ops ----------------------------------------------------------------------------------------------------


def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(cubes, (random(5, dtype=dtype).requires_grad_(), 1.5, -1))
    torch.library.opcheck(segment_mean, (random(6, 3, dtype=dtype).requires_grad_(), *segments()))


@each_op
def test_compile_changes_nothing(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    def loss(x: Tensor) -> Tensor:
        return (op(x) * op(2 * x)).sum()

    x = random(*shape).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), loss(x))
    assert torch.equal(*(torch.autograd.grad(f(x), x)[0] for f in (compiled, loss)))


# --- launches --------------------------------------------------------------------------------------------------------


def test_long_launches_are_split_and_keep_their_bits(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, run = random(50_001), []
    replay = bridge._replay

    def spy(kernel: wp.Kernel, items: int, *args: object) -> None:
        run.append((args[0], items, threading.get_ident()))
        replay(kernel, items, *args)
        time.sleep(0.02)  # else the first thread has done it all before another is awake

    monkeypatch.setattr(bridge, "_replay", spy)
    results = []
    for count in (1, 2, 3):
        threads(count)
        run.clear()
        results.append(cubes(x, 1.5, 2))
        pieces = sorted(run)
        assert (len(pieces) == 1) == (count == 1) and len({ident for *_, ident in pieces}) > (count > 1)
        assert [first for first, *_ in pieces] == [sum(n for _, n, _ in pieces[:i]) for i in range(len(pieces))]
        assert sum(n for _, n, _ in pieces) == len(x)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.allclose(results[0], 1.5 * x**3 + 2, rtol=1e-15)
    run.clear()
    cubes(x[:5000], 1.0, 0)
    assert len(run) == 1, "a short launch is not worth a second thread"


def test_nobody_waits_for_a_thread_that_is_not_needed(threads: Callable[[int], None]) -> None:
    threads(2)
    x = random(50_001)
    expected, busy, free = cubes(x, 1.5, 2), threading.Event(), threading.Event()
    workers = bridge._workers(1, os.getpid())

    def sleep() -> None:
        busy.set()
        assert free.wait(30)

    (asleep,) = workers.begin(sleep)
    busy.wait()
    try:
        assert torch.equal(cubes(x, 1.5, 2), expected)
        assert not asleep.done()
    finally:
        free.set()
    asleep.result()


def test_gradients_keep_their_bits(threads: Callable[[int], None]) -> None:
    values = random(20_000, 2, dtype=torch.float32).requires_grad_()
    order = torch.randint(0, 20_000, (40_000,), generator=torch.Generator().manual_seed(0))
    grads = []
    for count in (1, 2):
        threads(count)
        out = segment_mean(values, order, torch.arange(0, 40_001, 4))
        grads.append(torch.autograd.grad(out.square().sum(), values)[0])
    assert torch.equal(*grads)


def test_a_failure_in_a_thread_is_not_lost(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kernel: wp.Kernel, items: int, *args: object) -> None:
        if args[0] != 0:
            raise RuntimeError("in a thread")

    monkeypatch.setattr(bridge, "_replay", fail)
    threads(2)
    with pytest.raises(RuntimeError, match="in a thread"):
        bridge.launch(CUBES[torch.float64], 10_000, device=torch.device("cpu"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads have no affinities here")
def test_workers_leave_the_caller_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    workers, seen = bridge._Workers(2), []
    for core in (*sorted(allowed)[:2], *sorted(allowed)[:1]):
        monkeypatch.setattr(bridge, "_core", lambda core=core: core)
        for one in workers.begin(lambda: seen.append(os.sched_getaffinity(0))):
            one.result()
        assert seen[-2:] == [allowed - {core} or allowed] * 2
    assert os.sched_getaffinity(0) == allowed


def test_a_launch_takes_what_it_is_given_each_time() -> None:
    for count, scale, shift in ((3, 1.5, -1), (5, 2.0, 7), (4, 3, 0)):
        x = random(count)
        assert torch.allclose(cubes(x, scale, shift), scale * x**3 + shift, rtol=1e-15)
        held = weakref.ref(x)
        del x
        assert held() is None, "a launch that is to be repeated keeps a tensor alive"


# --- choosing a backend ----------------------------------------------------------------------------------------------


def test_choose(dtype: torch.dtype) -> None:
    x = random(3, dtype=dtype)
    assert bridge.choose("auto", x) and bridge.choose("warp", x) and not bridge.choose("torch", x)
    assert bridge.choose("auto")
    for other in (x.half(), x.long(), x.to("meta")):
        assert not bridge.choose("auto", x, other)
        assert not bridge.choose("torch", other)
        with pytest.raises(ShapeError, match=r"backend: expected float32 or float64 .* got a"):
            bridge.choose("warp", x, other)


def test_choose_takes_no_unknown_backend() -> None:
    with pytest.raises(ShapeError, match="backend: expected one of 'auto', 'warp', 'torch', got str 'cuda'"):
        bridge.choose("cuda", torch.zeros(1))


@pytest.mark.parametrize(
    "transform", [torch.func.vmap, torch.func.jacrev, torch.func.jacfwd, partial(torch.func.grad, has_aux=False)]
)
def test_functorch_takes_the_twin(transform: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(bridge.choose("auto", x))
        with pytest.raises(ShapeError, match=r"no torch\.func transform"):
            bridge.choose("warp", x)
        return x.square().sum()

    transform(f)(torch.ones(3))
    assert seen == [False]


# --- manners ---------------------------------------------------------------------------------------------------------


def test_warmup_names_its_modules() -> None:
    seconds = bridge.warmup()
    assert tuple(seconds) == bridge.MODULES
    assert all(isinstance(s, float) and s >= 0 for s in seconds.values())
    written = {
        path.stem
        for path in (ROOT / "kernels").glob("*.py")
        if re.search(r"native_kernel\(|Formula\(", path.read_text())
    }
    assert written - {"native", "formula"} == set(bridge.MODULES), (
        "a module that warm-up does not know compiles in a user's call"
    )


def test_a_compilation_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from geom.kernels.voxels import __name__ as module  # any with kernels

    kernel = next(iter(wp.get_module(module).kernels.values()))
    monkeypatch.setattr(bridge, "_PATIENCE", 0.01)
    monkeypatch.setattr(bridge, "_loaded", set())
    slow = bridge.wp.load_module
    monkeypatch.setattr(bridge.wp, "load_module", lambda *args, **given: (time.sleep(0.2), slow(*args, **given)))
    for _ in range(2):
        bridge._load(kernel, torch.device("cpu"))
    assert [record.getMessage() for record in caplog.records] == [
        f"compiling {module} for cpu, this once (`geom warmup` does it ahead)"
    ]
    caplog.clear()
    monkeypatch.setattr(bridge, "_loaded", set())
    monkeypatch.setattr(bridge, "_PATIENCE", 60.0)
    bridge._load(kernel, torch.device("cpu"))
    assert not caplog.records


QUIET = """
import os, signal, torch, geom.points
from geom.points.normals import local_shape
torch.set_num_threads(2)
points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
index = (torch.arange(20_000)[:, None] + torch.arange(-20, 0)) % 20_000
first = local_shape(points, index)
if os.fork() == 0:  # a forked worker has none of its parent's threads; torch.equal would wait for those of OpenMP
    signal.alarm(30)
    again = local_shape(points, index)
    os._exit(0 if [x.numpy().tobytes() for x in first] == [x.numpy().tobytes() for x in again] else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_silent_compiled_once_and_safe_to_fork(tmp_path: Path) -> None:
    def run() -> dict[str, int]:
        environment = {**os.environ, "WARP_CACHE_PATH": str(tmp_path)}
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", QUIET]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        said = [line for line in done.stderr.splitlines() if not line.startswith("compiling geom.kernels.")]
        assert (done.returncode, done.stdout, said) == (0, "", [])
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    compiled = run()
    assert any(path.endswith(".o") for path in compiled)
    assert run() == compiled, "the second process compiled again"
