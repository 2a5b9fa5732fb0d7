"""Point Cloud Mamba: the published sizes and names, the network against its equations, orders, prompts, windows."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, linear, relu

from geom.errors import FileFormatError, ShapeError
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.grouping import LocalGrouper, PreExtraction, group
from geom.sequence.point_cloud_mamba import PCM, PCM_TINY, PointCloudMamba, PointCloudMambaPlan, _windows

PLAN = PointCloudMambaPlan(
    width=6,
    expansion=(1, 2),
    blocks=(2, 2),
    orders=("xyz", "zxy", "hilbert", "xyz"),
    reduce=(1, 2),
    neighbors=4,
    prompts=2,
    prompt_width=5,
    grid_size=0.4,
)
SMALL = dataclasses.replace(PLAN, blocks=(1, 1), orders=("yzx", "zxy"), reduce=(2, 2))
SIZES = (40, 25, 33)
OFFSETS = torch.tensor([0, 40, 65, 98])


def clouds(dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(sum(SIZES), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def make(cls: Any = PointCloudMamba, plan: Any = PLAN, dtype: torch.dtype = torch.float64, **more: int) -> Any:
    """A network whose norms have seen something, and whose vectors are not those of the beginning."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden": (8, 8)} if cls is PointCloudMamba else {}
    network = cls(3, plan=plan, **{**shape, **more}).to(dtype)
    with torch.no_grad():
        for name, x in network.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 2)
            elif name.endswith(("running_mean", "affine_beta", "norm.bias", "net.1.bias")):
                x.normal_(std=0.3)
            elif name.endswith(("affine_alpha", "norm.weight", "net.1.weight")):
                x.uniform_(0.5, 2)
    return network.eval()


# --- the network, cloud by cloud, as its equations are written --------------------------------------------------------


def norm(pair: Any, x: Tensor) -> Tensor:
    convolution, own = pair
    x = linear(x, convolution.weight[..., 0], convolution.bias)
    return batch_norm(x, own.running_mean, own.running_var, own.weight, own.bias)


def residual(layer: Any, x: Tensor) -> Tensor:
    return relu(x + norm(layer.net2, relu(norm(layer.net1, x))))


def farthest(p: Tensor, count: int) -> Tensor:
    chosen, near = [0], (p - p[0]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(near.argmax()))
        near = torch.minimum(near, (p - p[chosen[-1]]).square().sum(1))
    return torch.tensor(sorted(chosen))


def extract(grouper: Any, layers: Any, f: Tensor, p: Tensor, k: int, reduce: int) -> tuple[Tensor, Tensor]:
    anchors = torch.arange(len(p)) if reduce == 1 else farthest(p, len(p) // reduce)
    near = torch.cdist(p[anchors], p).argsort(dim=1, stable=True)[:, :k]
    every = torch.cat([f, p], 1)
    gaps = every[near] - every[anchors][:, None]
    gaps = grouper.affine_alpha[0] * gaps / (gaps.std() + 1e-5) + grouper.affine_beta[0]
    x = torch.cat([gaps, f[anchors][:, None].expand(-1, k, -1)], 2)
    x = relu(norm(layers.transfer.net, x.flatten(0, 1)))
    return anchors, residual(layers.operation[0], x).unflatten(0, near.shape).amax(1)


def key(p: Tensor, order: str, cells: float) -> Tensor:
    """Traverse keys, as the specification has them; others are trusted to `geom.points`."""
    if order == "hilbert":
        from geom.points import serialize

        return serialize(p, order=order, grid_size=cells, bits=16).inverse
    grid = torch.floor((p - p.amin(0)) / cells).long()
    n = grid.amax(0) + 1
    (c0, c1, c2), (n0, n1, _) = ([x[..., "xyz".index(axis)] for axis in order] for x in (grid, n))
    v = torch.where(c2 % 2 == 0, c1, n1 - 1 - c1)
    line = c2 * n1 + v
    return line * n0 + torch.where((c1 + c2) % 2 == 0, c0, n0 - 1 - c0)


def reference(network: Any, p: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Levels (p, f) of one cloud."""
    encoder, plan = network.encoder, network.encoder.plan
    h, r, current, k = relu(norm(encoder.embedding.net, p)), None, None, 0
    levels, cells = [(p, h)], plan.grid_size
    for i, blocks in enumerate(encoder.mamba_blocks_list):
        anchors, h = extract(
            *(encoder.local_grouper_list[i], encoder.pre_blocks_list[i], h, p, plan.neighbors, plan.reduce[i])
        )
        p, cells = p[anchors], cells * plan.reduce[i] ** 0.5
        r = None if r is None else encoder.residual_proj_blocks_list[i](r[anchors])
        for block in blocks:
            if plan.orders[k] != current:
                current = plan.orders[k]
                place = key(p, current, cells).argsort(stable=True)
                p, h, r = p[place], h[place], None if r is None else r[place]
            h = h + p @ (encoder.pos_proj[i].weight.T)
            first = plan.prompts * list(dict.fromkeys(plan.orders)).index(current)
            prompt = encoder.order_prompt_proj[i](encoder.order_prompt.weight[first : first + plan.prompts])
            h = torch.cat([prompt, h, prompt])
            r = h if r is None else torch.cat([prompt, r, prompt]) + h
            scaled = r / (r.square().mean(1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
            h = block.mixer(scaled)[plan.prompts : -plan.prompts]
            r, k = r[plan.prompts : -plan.prompts], k + 1
        levels.append((p, h))
    return levels


def test_classifier_is_its_equations(dtype: torch.dtype) -> None:
    network, x = make(), clouds()
    with torch.no_grad():
        tops = torch.stack([reference(network, cloud)[-1][1].amax(0) for cloud in x.split(SIZES)])
        want = network.prediction(tops)
        got = network.to(dtype)(x.to(dtype), offsets=OFFSETS)
    assert got.dtype == dtype and got.shape == (3, 3)
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    assert float((got - want).abs().max()) <= limit * float(want.abs().max())


@pytest.mark.parametrize("categories", [0, 3])
def test_segmenter_is_its_equations(categories: int) -> None:
    network, x = make(PointCloudMambaSegmenter, SMALL, categories=categories), clouds()
    category, decoder = torch.tensor([2, 0, 1]), network.decoder
    want = []
    with torch.no_grad():
        for number, cloud in enumerate(x.split(SIZES)):
            levels = reference(network, cloud)[::-1]
            p, h = levels[0]
            for carry, (fine, own) in zip(decoder.decode_list, levels[1:], strict=True):
                distance, near = torch.cdist(fine, p).square().topk(3, largest=False)
                weight = 1 / (distance + 1e-20)
                carried = (h[near] * (weight / weight.sum(1, keepdim=True))[..., None]).sum(1)
                joined = relu(norm(carry.fuse.net, torch.cat([own, carried], 1)))
                p, h = fine, residual(carry.extraction["operation"][0], joined)
            mapped = [
                relu(norm(layer.net, f)).amax(0) for layer, (_, f) in zip(decoder.gmp_map_list, levels, strict=True)
            ]
            wide = [relu(norm(decoder.gmp_map_end.net, torch.cat(mapped)[None]))]
            if categories:
                told = torch.eye(3, dtype=x.dtype)[category[number]][None]
                for layer in decoder.cls_map:
                    told = relu(norm(layer.net, told))
                wide.append(told)
            h = torch.cat([h, torch.cat(wide, 1).expand(len(h), -1)], 1)
            h = torch.cat([h, h.amax(0).expand_as(h), h.mean(0).expand_as(h)], 1)
            head = network.head.head
            want.append(linear(relu(norm(head[0], h)), head[2][0].weight[..., 0], head[2][0].bias))
        got = network(x, offsets=OFFSETS, category=category if categories else None)
    torch.testing.assert_close(got, torch.cat(want), atol=1e-6, rtol=1e-6)  # cdist rounds where points coincide


def test_groups_are_padded_and_equal_in_both_modes() -> None:
    torch.manual_seed(0)
    layers, grouper = PreExtraction(4, 6).double(), LocalGrouper(4).double()
    points, features = torch.randn(9, 3).double(), torch.randn(9, 4).double()
    groups = group(points, 5, offsets=torch.tensor([0, 2, 9]))
    assert groups.neighbors[0].tolist() == [0, 1, 0, 0, 0]
    one = group(points.float(), 3, reduce=3, offsets=torch.tensor([0, 5, 9]))
    assert one.offsets.tolist() == [0, 1, 2] and one.anchors.tolist() == [0, 5]
    layers.eval()
    with torch.no_grad():
        quick = layers(grouper, features, points, groups)
    torch.testing.assert_close(layers(grouper, features, points, groups), quick, atol=1e-13, rtol=1e-12)
    still = torch.zeros(4, 3).double().requires_grad_()
    y = layers.train()(grouper, torch.ones(4, 4).double(), still, group(still, 2))
    (slope,) = torch.autograd.grad(y.square().sum(), still)
    assert bool(y.isfinite().all()) and bool(slope.isfinite().all())


# --- what was published -----------------------------------------------------------------------------------------------


def millions(module: nn.Module) -> float:
    return round(sum(x.numel() for x in module.parameters()) / 1e6, 2)


def test_sizes_are_the_published_ones() -> None:
    parts = {"channels": 7, "reduce": (2, 2, 2, 2)}
    scenes = PointCloudMambaPlan(channels=7, width=96, expansion=(1, 2, 2, 2), reduce=(4, 4, 2, 2), grid_size=0.04)
    with torch.device("meta"):
        for plan, whole, scans, decoder in ((PCM, 33.69, 27.15, 4.49), (PCM_TINY, 6.61, 4.74, 1.19)):
            encoder = PointCloudMamba(40, plan=plan).encoder
            mixers = nn.ModuleList(x for name, x in encoder.named_modules() if name.endswith(".mixer"))
            assert (millions(encoder), millions(mixers)) == (whole, scans)
            network = PointCloudMambaSegmenter(50, plan=dataclasses.replace(plan, **parts), categories=16)
            assert millions(network.decoder) == decoder
        network = PointCloudMambaSegmenter(13, plan=scenes)
        assert (millions(network.encoder), millions(network.decoder)) == (22.09, 1.13)
        assert millions(PointCloudMamba(40).prediction) == 0.54


# --- orders, prompts, windows -----------------------------------------------------------------------------------------


def test_clouds_are_seen_by_themselves() -> None:
    x = clouds()
    x[70] *= 30  # one far point, which in the published code changes the curves of all
    near = dataclasses.replace(PLAN, grid_size=0.02)
    for plan, alike in ((near, True), (dataclasses.replace(near, official_orders=True), False)):
        network = make(plan=plan)
        with torch.no_grad():
            whole = network(x, offsets=OFFSETS)
            each = torch.cat([network(cloud) for cloud in x.split(SIZES)])
        assert torch.allclose(whole, each, atol=1e-12) == alike


def test_official_orders_are_the_published_keys() -> None:
    plan = dataclasses.replace(PLAN, official_orders=True, grid_size=0.3)
    p, encoder = clouds(), make(plan=plan).encoder
    grid = torch.cat([x - x.amin(0) for x in torch.floor(p / 0.3).long().split(SIZES)])
    u, m0, m1, m2 = grid[:, 1], *(int(grid[:, i].max()) for i in (1, 2, 0))
    base, code = m0, u  # of order yzx
    for top in (m1, m2):
        code = top * base + code if top % 2 == 0 else (top + 1) * base - code
        base *= top
    want = [x.argsort(stable=True) + begin for x, begin in zip(code.split(SIZES), OFFSETS.tolist(), strict=False)]
    assert torch.equal(encoder._place(p, "yzx", 0.3, OFFSETS), torch.cat(want))
    assert not torch.equal(make()(p, offsets=OFFSETS), make(plan=plan)(p, offsets=OFFSETS))


def test_prompts_belong_to_orders_as_they_first_appear() -> None:
    assert PLAN.unique_orders == ("xyz", "zxy", "hilbert")
    network, p = make(), clouds()
    before = network(p, offsets=OFFSETS)
    last = dataclasses.replace(PLAN, orders=("xyz", "zxy", "xyz", "xyz"))
    unused = make(plan=dataclasses.replace(PLAN, blocks=(2, 1), orders=PLAN.orders[:3])).encoder
    assert unused.order_prompt.weight.shape == (6, 5) and make(plan=last).encoder.order_prompt.weight.shape == (4, 5)
    with torch.no_grad():
        network.encoder.order_prompt.weight[4:] += 1
    assert not torch.equal(network(p, offsets=OFFSETS), before)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from geom.sequence.point_cloud_mamba import PointCloudMamba
x = torch.load("in.pt", weights_only=True)
with torch.no_grad():
    nets = [PointCloudMamba.load(name + ".safetensors") for name in ("true", "official")]
    torch.save([net(x["points"], offsets=x["offsets"]) for net in nets], "out.pt")
"""


def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    points, here = clouds(torch.float32), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, official in (("true", False), ("official", True)):
        network = make(plan=dataclasses.replace(PLAN, official_orders=official), dtype=torch.float32)
        network.save(tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            here.append(network(points, offsets=OFFSETS))
    torch.set_num_threads(threads)
    torch.save({"points": points, "offsets": OFFSETS}, tmp_path / "in.pt")
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment, cwd=tmp_path)
    for got, want in zip(torch.load(tmp_path / "out.pt", weights_only=True), here, strict=True):
        assert torch.equal(got, want)


def test_windows(dtype: torch.dtype) -> None:
    x = clouds(dtype)
    keep, ends, windows, seen = _windows(x, 15, OFFSETS, False)
    assert ends.tolist() == [0, 30, 45, 75] and windows.tolist() == [0, 15, 30, 45, 60, 75]
    for begin, cloud in zip(OFFSETS.tolist(), (keep[:30], keep[30:45], keep[45:]), strict=False):
        size = SIZES[OFFSETS.tolist().index(begin)]
        assert torch.equal(cloud - begin, farthest(x[begin : begin + size], len(cloud)))
    for part in seen.split(15):
        assert bool((part.amin(0) == 0).all()) and bool((1 - part.amax(0) < 2e-5).all())
    low, high = x[keep].amin(1, keepdim=True), x[keep].amax(1, keepdim=True)
    torch.testing.assert_close(_windows(x, 15, OFFSETS, True)[3], (x[keep] - low) / (high - low + 1e-6))
    keep, ends, windows, seen = _windows(x, 30, OFFSETS, False)  # the second cloud is smaller than a window
    assert windows.tolist() == ends.tolist() == [0, 30, 55, 85] and torch.equal(seen[30:55], x[40:65])


def test_scenes_with_windows_keep_their_points() -> None:
    plan = dataclasses.replace(SMALL, windows=(8, 6))
    network, x = make(PointCloudMambaSegmenter, plan), clouds()
    true = network(x, offsets=OFFSETS)
    assert true.shape == (98, 3)
    quirk = make(PointCloudMambaSegmenter, dataclasses.replace(plan, official_windows=True))
    whole = make(PointCloudMambaSegmenter, SMALL)
    assert not torch.allclose(true, quirk(x, offsets=OFFSETS)) and not torch.allclose(true, whole(x, offsets=OFFSETS))
    assert make(plan=dataclasses.replace(PLAN, windows=(8, 6)))(x, offsets=OFFSETS).shape == (3, 3)


# --- training, and wrong input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PointCloudMamba, PointCloudMambaSegmenter])
def test_gradients(cls: type) -> None:
    network, x = make(cls, SMALL), clouds()[:12].requires_grad_()
    offsets = torch.tensor([0, 5, 12])
    assert torch.autograd.gradcheck(lambda p: network(p, offsets=offsets), (x,), fast_mode=True, atol=1e-4)
    network.train()(x, offsets=offsets).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_drop_path_leaves_out_whole_clouds_while_training() -> None:
    plan = dataclasses.replace(SMALL, drop_path=0.5, blocks=(1, 2), orders=("xyz",) * 3)
    encoder, x = make(plan=plan).encoder, clouds()
    drops = [block.drop for stage in encoder.mamba_blocks_list for block in stage]
    assert drops == [0.0, 0.0, 0.25]
    block = encoder.mamba_blocks_list[1][1]
    h, r = torch.ones(len(x), 12).double(), torch.zeros(len(x), 12).double()
    torch.manual_seed(0)
    block.train()
    sums = torch.stack([block(h, r, OFFSETS)[1] for _ in range(100)])
    assert set(sums.unique().tolist()) == {0.0, 1 / 0.75}
    per_cloud = [part.flatten(1) for part in sums.split(SIZES, 1)]
    assert all(bool((part == part[:, :1]).all()) for part in per_cloud)
    assert 0.6 < float(sums[:, 0, 0].count_nonzero()) / 100 < 0.9
    assert torch.equal(block.eval()(h, r, OFFSETS)[1], h)


@pytest.mark.usefixtures("unchecked")
def test_errors(tmp_path: Path) -> None:
    for wrong in ({"width": 0}, {"expansion": (1,)}, {"orders": ("xyz",)}, {"reduce": (0, 1)}, {"drop_path": 1.0}):
        with pytest.raises(ShapeError, match=next(iter(wrong))):
            dataclasses.replace(PLAN, **wrong)
    with pytest.raises(ShapeError, match="orders: expected one of"):
        dataclasses.replace(PLAN, orders=("xyz", "zxy", "hilbert", "xyz-official"))
    network, parts = make(), make(PointCloudMambaSegmenter, categories=2)
    with pytest.raises(ShapeError, match="of at least 2, got"):
        network(torch.rand(3, 3).double(), offsets=torch.tensor([0, 1, 3]))
    with pytest.raises(ShapeError, match="finite"):
        network(torch.full((9, 3), torch.nan))
    with pytest.raises(ShapeError, match="features: expected a tensor"):
        network(torch.rand(9, 3).double(), torch.rand(9, 4).double())
    for category in (None, torch.tensor([2]), torch.tensor([0, 1]), torch.tensor([0.0])):
        with pytest.raises(ShapeError, match="category"):
            parts(torch.rand(9, 3).double(), category=category)
    parts.save(tmp_path / "parts.safetensors")
    with pytest.raises(FileFormatError, match="saved PointCloudMamba"):
        PointCloudMamba.load(tmp_path / "parts.safetensors")
