"""Selective scans, mixers and a network made of them, linear attention, the delta rule and causal convolutions: geom,
mambapy, and torch without kernels; the memory that scans take, and what a second thread brings."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from benchmarks.given import choose
from benchmarks.harness import Case, Contender
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER
from benchmarks.rows import Row, Scores, Work, by_threads, case_of, draw, untimed
from benchmarks.scan_peers import (
    SCANS,
    by_mambapy,
    chunked_attention,
    chunked_delta_rule,
    convolve,
    loop_attention,
    loop_delta_rule,
    mambapy_mixer,
)
from geom.sequence import Mamba, causal_convolution, delta_rule, linear_attention, selective_scan
from geom.sequence.point_cloud_mamba import PCM_TINY, PointCloudMamba, PointCloudMambaPlan

__all__ = ["GROUPS", "NOTES", "REFERENCE", "cases", "extra_bytes", "inputs", "rows_of"]

REFERENCE = BEST_PEER
NOTES = [
    "float32; B x L x D: batches, tokens, channels, of 16 states each; with gradient: forward, and the gradients of "
    "inputs and weights for given ones of the result; error: the largest of a result or a gradient, of the greatest "
    "number in it, from float64 by the loop, of the mixer by geom, of the convolution by torch",
    "scan: steps softplus(normal - 3), rates 1 to 16; geom given channels by tokens, as mamba-ssm takes them, the "
    "others tokens by channels, as mambapy does",
    "mambapy: its selective_scan (Blelloch's scan, with a gradient of its own) and its whole block with geom's "
    "weights; loop: one token after the other, unbound rather than sliced, as slices make the gradient quadratic in "
    "their number; associative scan: torch's, in its generic mode",
    "chunked: of scans cumulative sums within 16 tokens, inputs over their decays, which steps of 8 make infinite; of "
    "attention all pairs of 64 tokens, of 16 where it is gated; of the delta rule a triangular system for 64",
    "Mamba mixer: 192 channels, 384 inside; ragged: 8 clouds of 64 to 1,024 tokens, geom with offsets, mambapy padded "
    "to the longest; attention: 4 heads of 48 features; convolution: 4 taps, torch's conv1d as Mamba's code calls it",
    "PCM-Tiny: the classifier, of 8 clouds of 1,024 points; mambapy: geom's, but for its six mixers of two directions",
    "threads: one and all in turn, the least of 15; a matrix product of 1,200 rows tells what the machine's cores give",
    "extra memory: the most that a call holds at once beyond its operands, its results included; share: of mambapy's",
    "aims against mambapy: scans 20 and, with gradient, 12 times as fast for the first and third size, 10 and 8 for "
    "the second, or 8 and 40 ns a token and channel; 5 % of its memory; two threads 1.7 times as fast as one; PCM-Tiny "
    "1.5 s of wall time on two threads, and 5 times as fast",
]
GROUPS = ("scan", "mixer", "network", "attention", "convolution")
_ROWS, _MEMORY, _THREADS = "sequences", "extra memory", "threads"
_PACKAGES = {"mambapy": "mambapy"}
_STATES = 16
_SIZES = [(1, 1024, 768), (1, 4096, 128), (1, 16384, 128)]  # batches, tokens, channels
_SMALL = [(1, 100, 16)]


def inputs(names: tuple[str, ...]) -> list[str]:
    """Groups of rows, and the cases that are not timed. Raises: GeomError for a name that is not there."""
    return choose([*GROUPS, _MEMORY, _THREADS], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    chosen = inputs(request.inputs) or [*GROUPS, _MEMORY, _THREADS]
    on_cpu = request.device == "cpu"
    if on_cpu and request.clock != "cpu":  # what says something new with this number of threads
        chosen = [name for name in chosen if name in ("mixer", "network", _THREADS)]
    if threads == 1 or not on_cpu:
        chosen = [name for name in chosen if name != _THREADS]
    found, missing = installed(list(_PACKAGES.items()))
    groups = [name for name in chosen if name in GROUPS]

    def make() -> Iterator[Case]:
        if groups:
            rows = [row for name in groups for row in rows_of(name, request.device, request.quick)]
            yield case_of(_ROWS, rows, set(_PACKAGES.values()).difference(found), request.quick)
        if _MEMORY in chosen:
            yield Case(_MEMORY, _memory(request, found), timed=False)
        if _THREADS in chosen:
            yield Case(_THREADS, _by_threads(threads, request.quick), timed=False)

    return bool(groups) + (_MEMORY in chosen) + (_THREADS in chosen), make(), missing


def rows_of(group: str, device: str, quick: bool) -> list[Row]:
    """The rows of one of `GROUPS`."""
    if group == "scan":
        return [_scan(*size, device) for size in (_SMALL if quick else _SIZES)]
    if group == "mixer":
        batches, tokens, width = (2, 50, 16) if quick else (2, 1024, 192)
        lengths = [5, 50] if quick else [round(64 + 960 * k / 7) for k in range(8)]
        return [_mixer(batches, tokens, width, device), _ragged(lengths, width, device)]
    if group == "network":
        plan = PointCloudMambaPlan(width=16, blocks=(1,), orders=("xyz",), expansion=(1,), reduce=(2,))
        return [_network(2, 50, plan, device) if quick else _network(8, 1024, PCM_TINY, device)]
    if group == "attention":
        size = (2, 100, 2, 8) if quick else (2, 1024, 4, 48)
        return [_attention(name, *size, device) for name in ("linear attention", "gated attention", "delta rule")]
    sizes = [(2, 50, 16)] if quick else [(2, 1024, 384), (1, 16384, 128)]
    return [_convolution(*size, device) for size in sizes]


# --- rows -------------------------------------------------------------------------------------------------------------


def _scan(batches: int, tokens: int, width: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        own = torch.empty(0, dtype=dtype, device=device)
        u = draw(0, batches, width, tokens, like=own)
        delta = draw(1, batches, width, tokens, like=own, form=lambda x: softplus(x - 3))
        B, C = (draw(seed, batches, _STATES, tokens, like=own) for seed in (2, 3))
        rates = -torch.arange(1, _STATES + 1).to(own).repeat(width, 1)
        along = [u, delta, B, C]
        if library != "geom":
            along = [x.mT.contiguous().mT for x in along]
        u, delta, B, C = along
        operands = [u, delta, rates, B, C, torch.ones(width).to(own)]
        scan: Callable[..., Tensor] = selective_scan if library == "geom" else SCANS[library]
        return lambda: [scan(*operands)], operands

    return Row(f"scan, {batches} x {tokens:,} x {width}", ("geom", *SCANS), build, "loop", 5)


def _mixer(batches: int, tokens: int, width: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        mixer = _made_mixer(width, device, dtype)
        x = draw(0, batches, tokens, width, like=mixer.out_proj.weight)
        run = mixer if library == "geom" else mambapy_mixer(mixer)
        return lambda: [run(x)], [x, *_weights(run, mixer)]

    return Row(f"Mamba mixer, {batches} x {tokens:,} x {width}", ("geom", "mambapy"), build, "geom")


def _ragged(lengths: Sequence[int], width: int, device: str) -> Row:
    longest, offsets = max(lengths), torch.tensor([0, *lengths]).cumsum(0).to(device)
    there = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(device)

    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        mixer = _made_mixer(width, device, dtype)
        x = draw(0, sum(lengths), width, like=mixer.out_proj.weight)
        if library == "geom":
            return lambda: [mixer(x, offsets)], [x, *_weights(mixer, mixer)]
        block = mambapy_mixer(mixer)

        def padded() -> Sequence[Tensor]:
            room = x.new_zeros(len(lengths), longest, width).index_put((there,), x)
            return [block(room)[there]]

        return padded, [x, *_weights(block, mixer)]

    return Row(f"Mamba mixer, ragged, {sum(lengths):,} x {width}", ("geom", "mambapy"), build, "geom")


def _network(clouds: int, points: int, plan: PointCloudMambaPlan, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        torch.manual_seed(0)
        network: torch.nn.Module = PointCloudMamba(40, plan=plan).eval().to(device, dtype)
        own = torch.empty(0, dtype=dtype, device=device)
        x = draw(0, clouds * points, 3, like=own, form=lambda x: normalize(x, dim=-1))
        offsets = points * torch.arange(clouds + 1, device=device)
        run = network if library == "geom" else by_mambapy(network)
        return lambda: [run(x, offsets=offsets)], []

    title = f"PCM-Tiny, {clouds} x {points:,}"
    return Row(title, ("geom", "mambapy"), build, "geom", together=True, gradients=(False,))


def _made_mixer(width: int, device: str, dtype: torch.dtype) -> Mamba:
    return Mamba(width, states=_STATES, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _weights(run: torch.nn.Module, mixer: Mamba) -> list[Tensor]:
    """In the mixer's order."""
    every = dict(run.named_parameters())
    return [every[name] for name, _ in mixer.named_parameters()]


def _attention(name: str, batches: int, tokens: int, heads: int, size: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        own = torch.empty(0, dtype=dtype, device=device)
        shape = batches, tokens, heads, size
        q, k, v = (draw(seed, *shape, like=own) for seed in range(3))
        if name == "delta rule":
            k = draw(1, *shape, like=own, form=lambda x: normalize(x, dim=-1))
            operands = [q, k, v, draw(3, *shape[:3], like=own, form=torch.sigmoid)]
            forms = {"geom": delta_rule, "loop": loop_delta_rule, "chunked": chunked_delta_rule}
        else:
            decays = draw(3, *shape, like=own, form=lambda x: logsigmoid(x) / 16)
            operands = [q, k, v, decays][: 4 if name == "gated attention" else 3]
            forms = {"geom": linear_attention, "loop": loop_attention, "chunked": chunked_attention}
        form = forms[library]
        return lambda: [form(*operands)], operands

    return Row(f"{name}, {batches} x {tokens:,} x {heads} x {size}", ("geom", "loop", "chunked"), build, "loop")


def _convolution(batches: int, tokens: int, width: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        own = torch.empty(0, dtype=dtype, device=device)
        operands = [draw(0, batches, tokens, width, like=own), draw(1, width, 4, like=own), draw(2, width, like=own)]
        form = causal_convolution if library == "geom" else convolve
        return lambda: [form(*operands)], operands

    return Row(f"causal convolution, {batches} x {tokens:,} x {width}", ("geom", "conv1d"), build, "conv1d", 10)


# --- what is not timed ------------------------------------------------------------------------------------------------


def extra_bytes(work: Callable[[], object], device: str) -> int:
    """The most bytes of torch's allocators that `work` holds at once beyond those there before, its result included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or the profiler writes to stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = work()
    held = most = 0
    events: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del kept
    return most


def _memory(request: Request, installed: Sequence[str]) -> list[Contender]:
    rows = rows_of("scan", request.device, request.quick)

    @cache
    def extra(index: int, library: str, gradient: bool) -> float:
        work = rows[index].work(library, torch.float32, gradient)
        if index == 0:
            work()  # what is loaded and compiled by the first call is not its
        return extra_bytes(work, request.device) / 1e6

    def measured(index: int, library: str) -> dict[str, float]:
        scores = {}
        for title, gradient in (("forward", False), ("gradient", True)):
            scores[f"{title}_MB"] = extra(index, library, gradient)
            if "mambapy" in installed:
                scores[f"{title}_share"] = scores[f"{title}_MB"] / extra(index, "mambapy", gradient)
        return scores

    return [
        untimed(library, f"{rows[index].method}:", partial(measured, index, library))
        for index in range(len(rows))
        for library in ("geom", *installed)
    ]


def _by_threads(threads: int, quick: bool) -> list[Contender]:
    """A scan on one thread and on all, and beside it what the machine's cores give a matrix product."""
    batches, tokens, width = (1, 1024, 64) if quick else (1, 4096, 768)
    row, square = _scan(batches, tokens, width, "cpu"), torch.ones(2 * [128 if quick else 1200])

    def work(run: Callable[[], Any]) -> Callable[[], Scores]:
        return lambda: by_threads(lambda count: run(), threads)

    forward, gradient = (row.work("geom", torch.float32, both) for both in (False, True))
    return [
        untimed("geom", f"{row.method}, forward:", work(forward)),
        untimed("geom", f"{row.method}, with gradient:", work(gradient)),
        untimed("torch", "matrix product:", work(lambda: square @ square)),
    ]
