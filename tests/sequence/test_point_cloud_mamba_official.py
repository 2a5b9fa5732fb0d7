"""State dicts of the published Point Cloud Mamba: their names and shapes, and how they load."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.official import load_official
from geom.sequence.point_cloud_mamba import PCM, PCM_TINY, PointCloudMamba, PointCloudMambaPlan

Shapes = dict[str, tuple[int, ...]]
PARTS: dict[str, Any] = {"channels": 7, "reduce": (2, 2, 2, 2)}
TINY = PointCloudMambaPlan(
    *(3, 4, (1, 2), (1, 1), ("zyx", "morton"), (1, 2)), neighbors=3, prompts=2, prompt_width=5, official_orders=True
)


def normed(name: str, *weight: int, bias: bool = False) -> Shapes:
    """A layer name.0 and its norm name.1."""
    own = {f"{name}.1.{x}": weight[:1] for x in ("weight", "bias", "running_mean", "running_var")}
    own |= {f"{name}.0.weight": weight, f"{name}.1.num_batches_tracked": ()}
    return own | ({f"{name}.0.bias": weight[:1]} if bias else {})


def mixer(name: str, c: int) -> Shapes:
    found: Shapes = {f"{name}.in_proj.weight": (4 * c, c), f"{name}.out_proj.weight": (c, 2 * c)}
    for end in ("", "_b"):
        rank = -(-c // 16)
        found |= {
            f"{name}.A{end}_log": (2 * c, 16),
            f"{name}.D{end}": (2 * c,),
            f"{name}.conv1d{end}.weight": (2 * c, 1, 4),
            f"{name}.conv1d{end}.bias": (2 * c,),
            f"{name}.x_proj{end}.weight": (rank + 32, 2 * c),
            f"{name}.dt_proj{end}.weight": (2 * c, rank),
            f"{name}.dt_proj{end}.bias": (2 * c,),
        }
    return found


def encoder(inputs: int, embed: int, widths: list[int], blocks: list[int], prompts: int) -> Shapes:
    """Of the module tree of PointMambaEncoder, with prompts of 384 and a position map a stage."""
    found = normed("encoder.embedding.net", embed, inputs, 1) | {"encoder.order_prompt.weight": (prompts, 384)}
    last = embed
    for i, (c, count) in enumerate(zip(widths, blocks, strict=True)):
        found |= {f"encoder.local_grouper_list.{i}.affine_{x}": (1, 1, 1, last + 3) for x in ("alpha", "beta")}
        found |= normed(f"encoder.pre_blocks_list.{i}.transfer.net", c, 2 * last + 3, 1)
        for part in ("net1", "net2"):
            found |= normed(f"encoder.pre_blocks_list.{i}.operation.0.{part}", c, c, 1)
        found |= {f"encoder.pos_proj.{i}.weight": (c, 3), f"encoder.order_prompt_proj.{i}.weight": (c, 384)}
        if i and c != last:
            found[f"encoder.residual_proj_blocks_list.{i}.weight"] = (c, last)
        for k in range(count):
            name = f"encoder.mamba_blocks_list.{i}.{k}"
            found |= mixer(f"{name}.mixer", c) | {f"{name}.norm.weight": (c,)}
        last = c
    return found


def cls_head(c: int, classes: int) -> Shapes:
    head = normed("prediction.head.0", 512, c) | normed("prediction.head.2", 256, 512)
    return head | {"prediction.head.4.0.weight": (classes, 256), "prediction.head.4.0.bias": (classes,)}


def decoder(widths: list[int], categories: int, classes: int) -> Shapes:
    """Of PointMambaPartDecoder or PointMambaDecoder without scans, and of SegHead; widths from the coarsest on."""
    found: Shapes = {}
    for i, (a, b) in enumerate(pairwise(widths)):
        found |= normed(f"decoder.decode_list.{i}.fuse.net", b, a + b, 1, bias=True)
        for part in ("net1", "net2"):
            found |= normed(f"decoder.decode_list.{i}.extraction.operation.0.{part}", b, b, 1, bias=True)
    for i, c in enumerate(widths):
        found |= normed(f"decoder.gmp_map_list.{i}.net", 64, c, 1, bias=True)
    found |= normed("decoder.gmp_map_end.net", 64, 64 * len(widths), 1, bias=True)
    if categories:
        found |= normed("decoder.cls_map.0.net", 64, categories, 1, bias=True)
        found |= normed("decoder.cls_map.1.net", 64, 64, 1, bias=True)
    c = 3 * (widths[-1] + 64 * (2 if categories else 1))
    found |= normed("head.head.0", c, c, 1)
    return found | {"head.head.2.0.weight": (classes, c, 1), "head.head.2.0.bias": (classes,)}


SCENES = PointCloudMambaPlan(channels=7, width=96, expansion=(1, 2, 2, 2), reduce=(4, 4, 2, 2), grid_size=0.04)
EXPECTED: dict[str, Any] = {
    "PCM": (lambda: PointCloudMamba(40, plan=PCM), encoder(3, 384, [384, 384, 768, 768], [1, 2, 2, 4], 54), (768, 40)),
    "PCM-Tiny": (
        lambda: PointCloudMamba(15, plan=PCM_TINY),
        encoder(3, 192, [192, 192, 384, 384], [1, 1, 2, 2], 36),
        (384, 15),
    ),
    "parts": (
        lambda: PointCloudMambaSegmenter(50, plan=dataclasses.replace(PCM_TINY, **PARTS), categories=16),
        encoder(7, 192, [192, 192, 384, 384], [1, 1, 2, 2], 36),
        ([384, 384, 192, 192, 192], 16, 50),
    ),
    "scenes": (
        lambda: PointCloudMambaSegmenter(13, plan=SCENES),
        encoder(7, 96, [96, 192, 384, 768], [1, 2, 2, 4], 54),
        ([768, 384, 192, 96, 96], 0, 13),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    build, below, above = EXPECTED[name]
    with torch.device("meta"):
        own = {key: tuple(x.shape) for key, x in build().state_dict().items()}
    assert own == below | (cls_head(*above) if len(above) == 2 else decoder(*above))


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"module.{name}": torch.rand(x.shape, generator=generator) if x.is_floating_point() else x + 5
        for name, x in module.state_dict().items()
    }


def test_weights_arrive(dtype: torch.dtype) -> None:
    network = PointCloudMamba(3, plan=TINY, hidden=(8, 8)).to(dtype)
    given = state(network)
    load_official(network, given)
    for name, x in network.state_dict().items():
        assert x.dtype == (dtype if x.is_floating_point() else torch.int64)
        assert torch.equal(x, given[f"module.{name}"].to(x.dtype))


def test_prompts_go_to_their_orders() -> None:
    network = PointCloudMamba(3, plan=TINY, hidden=(8, 8))
    given = state(network)
    rows = given["module.encoder.order_prompt.weight"]
    load_official(network, given, prompt_orders=("z", "zyx"))
    assert torch.equal(network.encoder.order_prompt.weight, rows[[2, 3, 0, 1]])
    load_official(network, given, prompt_orders=("zyx", "morton"))
    assert torch.equal(network.encoder.order_prompt.weight, rows)


def test_errors_name_the_entries() -> None:
    network = PointCloudMamba(3, plan=TINY, hidden=(8, 8))
    given = {name.removeprefix("module."): x for name, x in state(network).items()}
    before = {name: x.clone() for name, x in network.state_dict().items()}
    first = next(iter(given))
    for wrong, message in (
        ({name: x for name, x in given.items() if name != first}, f"missing {first}"),
        ({**given, "encoder.more": torch.zeros(1)}, "unknown encoder.more"),
        ({**given, first: torch.zeros(2, 2)}, "of shape"),
        ({}, "missing"),
    ):
        with pytest.raises(ShapeError, match=message):
            load_official(network, wrong)
    with pytest.raises(ShapeError, match="prompt_orders: expected each"):
        load_official(network, given, prompt_orders=("xyz", "zyx"))
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
