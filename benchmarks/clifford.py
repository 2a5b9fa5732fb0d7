"""Geometric algebra: products, layers and whole nets, ragged clouds and attention over tuples, beside the dense form
and packages from PyPI; what training keeps; and the dense form beside the published code's figures."""

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.clifford_peers import (
    DenseGATr,
    dense_layer,
    dense_product,
    lorentz_net,
    lorentz_product,
    tuple_attention,
)
from benchmarks.given import choose
from benchmarks.harness import Case, Contender, least
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER
from benchmarks.rows import Row, Work, case_of, draw, untimed
from geom.clifford import (
    PGA,
    STA,
    AttentionPlan,
    EquiLinear,
    GATr,
    GATrPlan,
    PointAttention,
    TupleProducts,
    join_reference,
)
from geom.clifford.embedding import embed_plane, embed_point

__all__ = ["NETS", "NOTES", "REFERENCE", "Net", "cases", "inputs", "kept_bytes", "rows_of"]

REFERENCE = BEST_PEER
NOTES = [
    "float32; N x C: N items of C multivectors of 16 numbers; with gradient: forward, and the gradients of inputs and "
    "weights (of nets: weights) for given ones of the result; error: the largest of a result or a gradient, of the "
    "greatest number in it, in nets and tuples of the greatest in all, as some gradients are rounding alone; from the "
    "dense form in float64, of tuples from geom in float64",
    "dense: GATr written from its equations as the published code computes it: the whole table of 16^3 numbers for "
    "products, a matrix 16 x 16 for each pair of channels, torch's attention of padded features side by side, plain "
    "autograd; same weights as geom",
    "G(1,3): lgatr 2 has this algebra alone, geom calls it STA; lgatr multiplies by the whole table, faster here "
    "than by its gathers. Its net has weights of its own, and neither joins nor distances: its sizes alone are GATr's, "
    "and no ratio is given",
    "GATr b T C S H L: b clouds of T items, a point and a plane each, C multivectors and S scalars inside, H heads of "
    "queries with one of keys and values, L blocks; b64 T4 C16 is the n-body net of the paper",
    "ragged: 8 clouds through a net of C16 S128 H8 L2; geom: one after the other, with offsets; the others: padded to "
    "the longest, with a mask and the references of joins; errors from a loop over the clouds",
    "tuples: attention over all pairs (rank 2) or triples (rank 3) of n points in b clouds, 32 channels, nets 64 wide",
    "kept for the gradient: the storages that autograd saves and those that a call leaves behind, each counted once, "
    "without parameters; aims: 29 kB a token and block for C16 S128, 300 MB for triples of 32 points; geom looks at "
    "16,384 tuples at once and computes the others again",
    "published: what GATr 1.4.3 took elsewhere, on one thread that did 92 GF/s, times 92 over the speed of this run's "
    "matrix products: dense stands in for it fairly where it takes no longer",
]
GROUPS = ("products", "layers", "nets", "ragged", "tuples")
_ROWS, _KEPT, _PUBLISHED = "algebra", "kept for the gradient", "published"
_PACKAGES = {"lgatr": "lgatr", "geometric_algebra_attention": "geometric-algebra-attention"}
_GIGAFLOPS = 92.0  # where the published code was measured


class Net(NamedTuple):
    """Clouds, items, and the plan; and what the published code takes, ms, forward and with gradients."""

    clouds: int
    items: int
    plan: GATrPlan
    published: tuple[float, float] = (0, 0)

    @property
    def name(self) -> str:
        p = self.plan
        return f"b{self.clouds} T{self.items} C{p.channels} S{p.scalars} H{p.attention.heads} L{p.blocks}"


def _plan(channels: int, scalars: int, heads: int, blocks: int) -> GATrPlan:
    return GATrPlan(channels, scalars, blocks, AttentionPlan(heads))


NETS = [
    Net(64, 4, _plan(16, 128, 8, 10), (174, 555)),
    Net(8, 128, _plan(32, 128, 8, 2), (344, 1194)),
    Net(1, 1024, _plan(32, 64, 8, 1), (201, 718)),
    Net(1, 1024, _plan(16, 128, 8, 2), (193, 676)),
    Net(1, 4096, _plan(8, 32, 4, 2), (733, 2622)),
]
_SMALL = [Net(2, 8, _plan(4, 8, 2, 2), (1, 3))]
_LENGTHS = {"64 to 256": [round(64 + 192 * k / 7) for k in range(8)], "seven of 64, one of 256": [64] * 7 + [256]}


def inputs(names: tuple[str, ...]) -> list[str]:
    """Groups of rows, and the cases that are not timed. Raises: GeomError for a name that is not there."""
    return choose([*GROUPS, _KEPT, _PUBLISHED], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    chosen = inputs(request.inputs) or [*GROUPS, _KEPT, _PUBLISHED]
    if request.device == "cpu":  # what says nothing new with this number of threads
        again = request.clock != "cpu"
        chosen = [name for name in chosen if not again or name in ("nets", "ragged")]
    elif _PUBLISHED in chosen:
        chosen.remove(_PUBLISHED)
    found, missing = installed(list(_PACKAGES.items()))
    groups = [name for name in chosen if name in GROUPS]
    others = [name for name in chosen if name not in GROUPS]

    def make() -> Iterator[Case]:
        if groups:
            rows = [row for name in groups for row in rows_of(name, request.device, request.quick)]
            yield case_of(_ROWS, rows, set(_PACKAGES.values()).difference(found), request.quick)
        for name in others:
            contenders = _kept(request, found) if name == _KEPT else _published(request)
            yield Case(name, contenders, timed=False)

    return bool(groups) + len(others), make(), missing


def rows_of(group: str, device: str, quick: bool) -> list[Row]:
    """The rows of one of `GROUPS`."""
    if group == "products":
        sizes = [(64, 16)] if quick else [(1024, 16), (1024, 32), (4096, 32)]
        rows = [_product(name, *size, device) for name in ("geometric", "join") for size in sizes]
        return [*rows, _lorentz_product(*sizes[len(sizes) // 2], device)]
    if group == "layers":
        sizes = [(64, 8)] if quick else [(1024, 8), (1024, 16), (1024, 32), (4096, 32)]
        return [_layer(*size, device) for size in sizes]
    if group == "nets":
        nets = _SMALL if quick else NETS
        return [*(_net(net, device) for net in nets), _lorentz_net(nets[len(nets) // 4], device)]
    if group == "ragged":
        lengths = {"3, 5 and 9": [3, 5, 9]} if quick else _LENGTHS
        plan = _SMALL[0].plan if quick else _plan(16, 128, 8, 2)
        return [_ragged(name, own, plan, device) for name, own in lengths.items()]
    pairs, *others = [(2, 6, 2)] if quick else [(32, 12, 2), (32, 21, 2), (1, 128, 2), (8, 12, 3)]
    return [_tuples(*size, device) for size in (pairs, *others)] + [_tuples(*pairs, device, multivector=True)]


# --- rows -------------------------------------------------------------------------------------------------------------


def _product(name: str, count: int, channels: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        own = torch.empty(0, dtype=dtype, device=device)
        x, y = (draw(seed, count, channels, 16, like=own) for seed in (0, 1))
        if library == "dense":
            return lambda: [dense_product(name, x, y)], [x, y]
        multiply = PGA.join if name == "join" else PGA.geometric_product
        return lambda: [multiply(x, y)], [x, y]

    title = "geometric product" if name == "geometric" else name
    return Row(f"{title}, {count:,} x {channels}", ("geom", "dense"), build, "dense", 10)


def _lorentz_product(count: int, channels: int, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        own = torch.empty(0, dtype=dtype, device=device)
        x, y = (draw(seed, count, channels, 16, like=own) for seed in (0, 1))
        table = STA.table("geometric").to(x)
        multiply = {
            "geom": lambda: STA.geometric_product,
            "lgatr": lorentz_product,
            "table": lambda: lambda x, y: torch.einsum("ijk,...j,...k->...i", table, x, y),
        }[library]()
        return lambda: [multiply(x, y)], [x, y]

    return Row(f"product of G(1,3), {count:,} x {channels}", ("geom", "lgatr"), build, "table", 10)


def _layer(count: int, channels: int, device: str) -> Row:
    scalars = 64

    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        layer = EquiLinear(channels, channels, scalars, scalars, generator=torch.Generator().manual_seed(0))
        layer = layer.to(device, dtype)
        x, s = draw(0, count, channels, 16, like=layer.weight), draw(1, count, scalars, like=layer.weight)
        weights = dict(layer.named_parameters())
        leaves = [x, s, *weights.values()]
        return (lambda: layer(x, s)) if library == "geom" else (lambda: dense_layer(weights, "", x, s)), leaves

    return Row(f"EquiLinear, {count:,} x {channels}, {scalars} scalars", ("geom", "dense"), build, "dense", 5)


def _cloud(net: Net, dtype: torch.dtype, device: str) -> tuple[GATr, Tensor, Tensor]:
    """A net, and multivectors that are a point and a plane through it."""
    made = GATr(2, 1, 1, 1, plan=net.plan, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    own = torch.empty(0, dtype=dtype, device=device)
    points, normals = (draw(seed, net.clouds, net.items, 3, like=own.double()) for seed in (0, 1))
    x = torch.stack([embed_point(points), embed_plane(normals, points)], -2).to(dtype)
    return made, x, draw(2, net.clouds, net.items, 1, like=own)


def _either(library: str, made: GATr) -> tuple[Callable[..., Any], list[Tensor]]:
    """The net or its dense form, and the weights."""
    if library == "dense":
        dense = DenseGATr(made.plan, made.state_dict())
        return dense, dense.parameters()
    return made, list(made.parameters())


def _net(net: Net, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        made, x, s = _cloud(net, dtype, device)
        run, weights = _either(library, made)
        return lambda: run(x, s), weights

    return Row(f"GATr {net.name}", ("geom", "dense"), build, "dense", together=True)


def _lorentz_net(net: Net, device: str) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        _, x, s = _cloud(net, dtype, device)
        other = lorentz_net((2, 1), (1, 1), net.plan).to(device, dtype)
        return lambda: other(x, s), list(other.parameters())

    return Row(f"lgatr's net {net.name}", ("lgatr",), build, "")


def _ragged(name: str, lengths: Sequence[int], plan: GATrPlan, device: str) -> Row:
    longest = max(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device)
    there = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(device)

    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        made, every, scalars = _cloud(Net(len(lengths), longest, plan), dtype, device)
        x, s = every[there], scalars[there]
        if library == "geom":
            return lambda: made(x, s, offsets=offsets), list(made.parameters())
        run, weights = _either(library.removesuffix(" loop"), made)
        if library == "dense loop":
            parts = [slice(a, b) for a, b in itertools.pairwise(offsets.tolist())]

            def loop() -> list[Tensor]:
                found = [run(x[None, part], s[None, part]) for part in parts]
                return [torch.cat(z, 1)[0] for z in zip(*found, strict=True)]

            return loop, weights
        padded = every * there[..., None, None]
        reference = join_reference(x, offsets=offsets)[offsets[:-1]][:, None]
        how = {"mask": there[:, None, None, :], "reference": reference}
        return lambda: [z[there] for z in run(padded, scalars, **how)], weights

    return Row(f"ragged, {name}", ("geom", "geom padded", "dense"), build, "dense loop", together=True)


def _tuple_layer(rank: int, multivector: bool, dtype: torch.dtype, device: str) -> PointAttention:
    torch.manual_seed(0)

    def net(inner: int, outer: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inner, 64), nn.SiLU(), nn.Linear(64, outer))

    return PointAttention(32, TupleProducts(rank, multivector), reduce=False, net=net).to(device, dtype)


def _tuples(clouds: int, count: int, rank: int, device: str, multivector: bool = False) -> Row:
    def build(library: str, dtype: torch.dtype) -> tuple[Work, Sequence[Tensor]]:
        layer = _tuple_layer(rank, multivector, dtype, device)
        own = torch.empty(0, dtype=dtype, device=device)
        points, values = draw(0, clouds, count, 3, like=own), draw(1, clouds, count, 32, like=own)
        points = nn.functional.pad(points, (1, 4)) if multivector else points
        if library == "geom":
            return lambda: [layer(points, values)], [points, values, *layer.parameters()]
        peer = tuple_attention(layer)
        weights = dict(peer.named_parameters())
        leaves = [points, values, *(weights[name] for name, _ in layer.named_parameters())]
        return lambda: [peer((points, values))], leaves

    title = f"{'multivector' if multivector else 'vector'} tuples, rank {rank}, b{clouds} n{count}"
    return Row(title, ("geom", "geometric-algebra-attention"), build, "geom", 5, together=True)


# --- what is not timed ------------------------------------------------------------------------------------------------


def kept_bytes(forward: Callable[[], Any], parameters: Sequence[Tensor]) -> int:
    """The bytes of the storages that autograd saves of a call, and of those that are there after it and were not before
    (its result, and what is kept to compute it again), each counted once; those of parameters are left out."""
    before, saved = _storages(_alive()), []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)  # alive until the end, so that no memory is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    new = {place: size for place, size in _storages(_alive()).items() if place not in before}
    kept, own = {**_storages(saved), **new}, _storages(parameters)
    del out
    return sum(size for place, size in kept.items() if place not in own)


def _alive() -> list[Tensor]:
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor) and x.device.type != "meta"]


def _storages(tensors: Sequence[Tensor]) -> dict[int, int]:
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}


def _kept(request: Request, installed: Sequence[str]) -> list[Contender]:
    device, found = request.device, []

    def add(method: str, library: str, work: Callable[[], dict[str, float]]) -> None:
        found.append(untimed(library, f"{method}:", work))

    def of_net(net: Net, library: str) -> dict[str, float]:
        made, x, s = _cloud(net, torch.float32, device)
        run, weights = _either(library, made)
        kept = kept_bytes(lambda: run(x, s), weights)
        return {"kB_per_token_and_block": kept / (1e3 * net.clouds * net.items * net.plan.blocks)}

    def of_tuples(size: tuple[int, int, int], library: str) -> dict[str, float]:
        layer = _tuple_layer(size[2], False, torch.float32, device)
        own = torch.empty(0, device=device)
        points, values = (draw(seed, *size[:2], width, like=own).requires_grad_() for seed, width in ((0, 3), (1, 32)))
        if library == "geom":
            return {"MB": kept_bytes(lambda: layer(points, values), list(layer.parameters())) / 1e6}
        peer = tuple_attention(layer)
        return {"MB": kept_bytes(lambda: peer((points, values)), list(peer.parameters())) / 1e6}

    for net in _SMALL if request.quick else NETS:
        for library in ("geom", "dense"):
            add(f"GATr {net.name}", library, lambda net=net, library=library: of_net(net, library))
    for size in [(1, 6, 3)] if request.quick else [(1, 32, 3), (8, 32, 3)]:
        for library in ("geom", *(x for x in installed if x != "lgatr")):
            method = f"vector tuples, rank {size[2]}, b{size[0]} n{size[1]}"
            add(method, library, lambda size=size, library=library: of_tuples(size, library))
    return found


def _published(request: Request) -> list[Contender]:
    """The dense net beside the published code's figures, at this run's speed of matrix products."""

    def work(net: Net) -> dict[str, float]:
        size, rounds = (128, 1) if request.quick else (1024, 3)
        matrix = draw(0, size, size, like=torch.empty(0))
        passes = [_net(net, "cpu").work("dense", torch.float32, gradient) for gradient in (False, True)]
        product, *took = (x for x, _ in least([lambda: [matrix @ matrix for _ in range(5)], *passes], rounds))
        speed = 5 * 2e-9 * size**3 / product
        figures = [x * _GIGAFLOPS / speed for x in net.published]
        return {
            "GF_s": speed,
            "forward_ms": 1e3 * took[0],
            "published_forward_ms": figures[0],
            "gradient_ms": 1e3 * took[1],
            "published_gradient_ms": figures[1],
        }

    nets = _SMALL if request.quick else NETS
    return [untimed("dense", f"GATr {net.name}:", lambda net=net: work(net)) for net in nets]
