"""The one bridge between torch and Warp: launches on torch tensors, threads on the CPU, and custom ops with adjoints.

A kernel's first argument is `first`, the index of its first item (`i = first + wp.tid()`): on the CPU, where Warp runs
a launch on one thread, the bridge cuts long launches into contiguous chunks, one for each torch thread. Items must be
independent; results are then the same bits for any number of threads. Sources of several dtypes come from one template.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from geom.checks import check_choice, describe
from geom.errors import ShapeError
from geom.kernels.native import DTYPES, start

__all__ = ["BACKENDS", "choose", "launch", "launch_range", "operator", "record", "small_operations", "warmup"]

BACKENDS = ("auto", "warp", "torch")
MODULES = (
    "bone_fitting",
    "clifford",
    "clifford_attention",
    "clifford_clouds",
    "clifford_layers",
    "clifford_linear",
    "codes",
    "convolution",
    "covariances",
    "edges",
    "geodesics",
    "neighbors",
    "recurrences",
    "registration",
    "rod_implicit",
    "rods",
    "rotations",
    "sampling",
    "scan_chunks",
    "scan_vectors",
    "screws",
    "skeletonization",
    "skinning",
    "slim",
    "slim_layers",
    "sparse",
    "state_space",
    "triangles",
    "triangular",
    "voxels",
)

_PATIENCE = 3.0  # seconds of loading after which a compilation is named
_log = logging.getLogger("geom")
_loaded: set[tuple[str, str]] = set()

Dispatch = Callable[[torch.dtype], wp.Kernel]
_local = threading.local()
_RANGE = 16384  # elements of a range below which a second CPU thread costs more than it saves


class _Workers:
    """Threads beside the one that calls them, and not on its core.

    Linux wakes a thread on its waker's core where it takes no other for idle, as in a virtual machine, whose halted
    cores seem preempted, and moves it milliseconds later: half of all launches of 10 ms then gained nothing.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="geom-warp")
        every = threading.Barrier(count)

        def begin(_: int) -> int:
            every.wait()
            return threading.get_native_id()

        self._threads = list(self._pool.map(begin, range(count)))
        self._left: int | None = None  # the core that is the caller's

    def begin(self, work: Callable[[], None]) -> list[Future[None]]:
        """Give it to each."""
        core = _core()
        if core != self._left:
            self._left = core
            allowed = os.sched_getaffinity(0)
            for thread in self._threads:
                with suppress(OSError):
                    os.sched_setaffinity(thread, allowed - {core} or allowed)
        return [self._pool.submit(work) for _ in self._threads]


@cache
def _workers(count: int, process: int) -> _Workers:  # a forked process has none of its parent's threads
    return _Workers(count)


def _no_core() -> None:
    """Where threads have no affinities."""


_core: Callable[[], int | None] = _no_core
if hasattr(os, "sched_setaffinity"):
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", _no_core)


def choose(backend: str, *tensors: Tensor) -> bool:
    """True where the Warp kernel is to run: "warp" and "torch" force one; "auto" is Warp for the dtypes it has, and the
    torch twin under functorch transforms and for any other dtype or device.

    Raises: ShapeError for another backend, and for "warp" where it cannot run.
    """
    check_choice(backend, BACKENDS, "backend")
    if backend == "torch":
        return False
    odd = [t for t in tensors if t.dtype not in DTYPES or t.device.type not in ("cpu", "cuda") or _wrapped(t)]
    if odd and backend == "warp":
        raise ShapeError(
            'backend: expected float32 or float64 on the CPU or CUDA, and no torch.func transform, for "warp", '
            f"got {describe(odd[0])} on {odd[0].device}"
        )
    return not odd


def _wrapped(x: Tensor) -> bool:
    """Whether a torch.func transform runs; torch.compile cannot trace the question."""
    return not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(x)


@cache
def _array_type() -> Any:
    start()
    return type(wp.from_torch(torch.empty(0), return_ctype=True))


def _descriptor(x: Any) -> Any:
    """A tensor as kernels take it; unlike `wp.from_torch`, in a third of the time and without holding the tensor."""
    if not isinstance(x, Tensor):
        return x
    size = x.element_size()
    return _array_type()(x.data_ptr(), 0, x.ndim, x.shape, [step * size for step in x.stride()])


def _load(kernel: wp.Kernel, device: torch.device) -> None:
    """Load the kernel's module before its first launch, before threads race for it; say so if that means to compile."""
    key = (kernel.module.name, str(device))
    if key in _loaded:
        return
    start()
    words = ("compiling %s for %s, this once (`geom warmup` does it ahead)", *key)
    timer = threading.Timer(_PATIENCE, _log.warning, words)
    timer.daemon = True
    timer.start()
    try:
        wp.load_module(kernel.module, device=wp.device_from_torch(device))
    finally:
        timer.cancel()
    _loaded.add(key)


def launch(kernel: wp.Kernel, items: int, *args: Any, device: torch.device, grain: int = 4096) -> None:
    """Run `kernel` over `items`; tensors among `args` are contiguous, and read or written in place.

    `grain`: items below which a second CPU thread would cost more than it saves.
    """
    if items == 0:
        return
    _load(kernel, device)
    packed = [_descriptor(x) for x in args]
    if device.type == "cuda":
        stream = wp.stream_from_torch(torch.cuda.current_stream(device))
        wp.launch(kernel, dim=items, inputs=[0, *packed], stream=stream)
        return
    threads = min(_threads(), items // grain)
    if threads <= 1:
        _replay(kernel, items, 0, *packed)
        return
    pieces = _pieces(items // grain, threads)

    def part(piece: int) -> None:
        begin, end = (items * k // pieces for k in (piece, piece + 1))
        _replay(kernel, end - begin, begin, *packed)

    _deal(part, pieces, threads)


def launch_range(kernel: wp.Kernel, count: int, *args: int, device: torch.device) -> None:
    """Run a kernel whose item is a range of `grain` elements, its last arguments `count` and `grain`.

    The others are plain integers, tensors as their addresses.
    """
    _load(kernel, device)
    if device.type == "cuda":
        stream = wp.stream_from_torch(torch.cuda.current_stream(device))
        wp.launch(kernel, dim=count, inputs=[0, *args, count, 1], stream=stream)
        return
    threads = min(_threads(), count // _RANGE)
    if threads <= 1:
        _replay(kernel, 1, 0, *args, count, count)
        return
    share = -(-count // _pieces(count // _RANGE, threads))
    _deal(lambda piece: _replay(kernel, 1, piece, *args, count, share), -(-count // share), threads)


def _pieces(grains: int, threads: int) -> int:
    """Pieces of a launch: up to four for each thread, as one core is often faster than another."""
    return threads * max(1, min(4, grains // threads))


def _deal(part: Callable[[int], None], pieces: int, threads: int) -> None:
    """part(0), ..., part(pieces - 1) on several threads, each of which takes the next when it is done with one."""
    left = iter(range(pieces))

    def work() -> None:
        for piece in left:
            part(piece)

    others = _workers(threads - 1, os.getpid()).begin(work)
    try:
        work()  # this thread works too
    finally:
        for other in others:
            if not other.cancel():  # a thread that is not awake yet would find nothing left
                other.result()


def record(kernel: wp.Kernel, items: int, *args: Any, device: torch.device) -> Callable[[], None]:
    """A launch to repeat, some 5 us each on the CPU, on one thread: tensors among `args` are bound, and kept."""
    _load(kernel, device)
    inputs = [0, *map(_descriptor, args)]
    if device.type == "cpu":
        command = wp.launch(kernel, dim=items, inputs=inputs, device="cpu", record_cmd=True)
    else:
        command = wp.launch(kernel, dim=items, inputs=inputs, device=wp.device_from_torch(device), record_cmd=True)

    def run() -> None:
        stream = wp.stream_from_torch(torch.cuda.current_stream(device)) if device.type == "cuda" else None
        command.launch(stream)

    run.arguments = args  # type: ignore[attr-defined]
    return run


def _replay(kernel: wp.Kernel, items: int, *args: Any) -> None:
    """A launch on this thread of the CPU, which it records the first time: another costs a third of one by Warp."""
    commands = _local.__dict__.setdefault("commands", {})
    command: Any = commands.get(kernel)
    if command is None:
        command = wp.launch(kernel, dim=items, inputs=args, device="cpu", record_cmd=True)
        commands[kernel] = command
    command.set_dim(items)
    for index, value in enumerate(args):
        command.set_param_at_index_from_ctype(index, value)
    command.launch()


def _threads() -> int:
    return getattr(_local, "threads", None) or torch.get_num_threads()


@contextmanager
def small_operations() -> Iterator[None]:
    """For work of many small torch operations between kernels: those on one thread, kernels still on all.

    After each parallel operation OpenMP's workers spin for milliseconds and hold the cores that kernels want.
    """
    threads = torch.get_num_threads()
    if threads == 1 or getattr(_local, "threads", None):
        yield
        return
    _local.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _local.threads = None
        torch.set_num_threads(threads)


def _adjoint(
    kernel: wp.Kernel,
    items: int,
    inputs: Sequence[Any],
    outputs: Sequence[Tensor],
    grad_inputs: Sequence[Any],
    grad_outputs: Sequence[Tensor],
    device: torch.device,
) -> None:
    """The kernel's adjoint, on one thread: its atomic sums are then in a fixed order on the CPU."""
    wp.launch(
        kernel,
        dim=items,
        inputs=[0, *map(_descriptor, inputs)],
        outputs=[_descriptor(x) for x in outputs],
        adj_inputs=[0, *map(_descriptor, grad_inputs)],
        adj_outputs=[_descriptor(x) for x in grad_outputs],
        adjoint=True,
        device="cpu" if device.type == "cpu" else wp.device_from_torch(device),
        stream=wp.stream_from_torch(torch.cuda.current_stream(device)) if device.type == "cuda" else None,
    )


def operator(
    name: str,
    schema: str,
    *,
    kernel: Dispatch,
    output: Callable[..., Tensor | tuple[Tensor, ...]],
    items: Callable[..., int],
    differentiable: Sequence[int] = (),
) -> Callable[..., Any]:
    """A kernel as the torch op `geom::name`, with fake and autograd registrations.

    Args: schema, the op's signature in torch's notation, e.g. "(Tensor x, Tensor starts) -> Tensor", a tensor first;
    kernel(dtype of that tensor), the Warp kernel whose arguments are `first`, the op's, and the outputs; output(*args),
    the empty output or outputs, also used on fake tensors; items(*args), the launch's size; differentiable (ops of one
    output), the places of the inputs that get gradients, through the adjoint Warp generates. A gradient of the gradient
    is an error.

    The pattern: detached inputs, outputs that torch allocates, torch tensors alone saved, and in the backward pass
    fresh zero gradients and a cloned incoming one. A Tape over `from_torch` of a tensor that requires grad would share
    `.grad` with it and double the gradient.
    """

    def forward(*args: Any) -> Tensor | tuple[Tensor, ...]:
        out = output(*args)
        outs = out if isinstance(out, tuple) else (out,)
        inputs = [x.contiguous() if isinstance(x, Tensor) else x for x in args]
        launch(kernel(args[0].dtype), items(*args), *inputs, *outs, device=args[0].device)
        return out

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)), output)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, out = ctx.saved_tensors
        rest = iter(saved)
        grads = adjoint(grad, out, *(next(rest) if x is None else x for x in ctx.plain))
        return tuple(grads.pop(0) if i in differentiable else None for i in range(len(ctx.plain)))

    def run_backward(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
        inputs = [x.detach().contiguous() if isinstance(x, Tensor) else x for x in args]
        grads = [torch.zeros_like(x) if i in differentiable else x for i, x in enumerate(inputs)]
        clone = grad.detach().clone(memory_format=torch.contiguous_format)
        if items(*args):
            _load(kernel(args[0].dtype), out.device)
            _adjoint(kernel(args[0].dtype), items(*args), inputs, [out.detach()], grads, [clone], out.device)
        return [grads[i] for i in differentiable]

    op = torch.library.custom_op(f"geom::{name}", forward, mutates_args=(), schema=schema)
    op.register_fake(output)
    if differentiable:
        adjoint = torch.library.custom_op(
            f"geom::{name}_adjoint",
            run_backward,
            mutates_args=(),
            schema=f"(Tensor grad, Tensor out, {schema.split(') ->')[0].strip()[1:]}) -> Tensor[]",
        )

        @adjoint.register_fake
        def _(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
            return [torch.empty_like(args[i], memory_format=torch.contiguous_format) for i in differentiable]

        op.register_autograd(backward, setup_context=setup)
    return op


def warmup(device: str = "cpu") -> dict[str, float]:
    """Compile every kernel module for `device`, or load it from Warp's cache: seconds by module."""
    start()
    seconds = {}
    for name in MODULES:
        begun = time.perf_counter()
        wp.load_module(import_module(f"geom.kernels.{name}").__name__, device=device)
        seconds[name] = time.perf_counter() - begun
    return seconds
