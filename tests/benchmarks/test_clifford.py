"""The clifford benchmark: its dense form against geom's nets, results that are wrong, what is kept, one run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.__main__ import main
from benchmarks.clifford import kept_bytes, rows_of
from benchmarks.clifford_peers import DenseGATr, dense_layer, dense_product
from benchmarks.report import Report
from benchmarks.rows import error_of
from geom.clifford import PGA, AttentionPlan, EquiLinear, GATr, GATrPlan
from geom.clifford.embedding import embed_plane, embed_point

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scalars", [0, 3])
def test_the_dense_net_is_the_net(dtype: torch.dtype, scalars: int) -> None:
    generator = torch.Generator().manual_seed(0)
    net: Any = GATr(2, 3, scalars, 2, plan=GATrPlan(6, 5, 2, AttentionPlan(4)), generator=generator).to(dtype)
    points = draw(0, 2, 7, 3)
    x = torch.stack([embed_point(points), embed_plane(draw(1, 2, 7, 3), points)], -2).to(dtype)
    s = draw(2, 2, 7, scalars).to(dtype) if scalars else None
    mask = torch.arange(7) < torch.tensor([5, 7])[:, None, None, None]
    dense: Any = DenseGATr(net.plan, net.state_dict())
    for how in ({}, {"mask": mask, "reference": draw(3, 2, 1, 1, 16).to(dtype)}):
        found, right = dense(x, s, **how), net(x, s, **how)
        assert error_of(found, right, together=True) < TOLERANCE[dtype]
        of_dense = torch.autograd.grad([z.square().sum() for z in found], dense.parameters())
        of_net = torch.autograd.grad([z.square().sum() for z in right], list(net.parameters()))
        assert error_of(of_dense, of_net, together=True) < TOLERANCE[dtype]


def test_dense_parts_are_the_layers() -> None:
    x, y = draw(0, 4, 3, 16), draw(1, 4, 3, 16)
    assert error_of([dense_product("geometric", x, y)], [PGA.geometric_product(x, y)]) < 1e-14
    assert error_of([dense_product("join", x, y)], [PGA.join(x, y)]) < 1e-14
    layer: Any = EquiLinear(3, 2, 0, 5).double()
    torch.nn.init.ones_(layer.bias)
    assert error_of(dense_layer(dict(layer.named_parameters()), "", x, None), layer(x)) < 1e-14


def test_rows_agree_in_float64() -> None:
    rows = [row for group in ("products", "layers", "nets", "ragged") for row in rows_of(group, "cpu", quick=True)]
    for row in [row for row in rows if row.exact]:
        for gradient in (False, True):
            names = (*row.libraries, row.exact)
            *found, right = [row.work(name, torch.float64, gradient)() for name in names if name != "lgatr"]
            assert all(error_of(x, right, together=row.together) < 1e-12 for x in found), row.method


def test_storages_are_counted_once() -> None:
    x, weight = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    assert kept_bytes(lambda: x.exp(), [weight]) == 40
    assert kept_bytes(lambda: x * weight, [weight]) == 40 + 40
    assert kept_bytes(lambda: (x[:5] * x[5:]).sin(), [weight]) == 40 + 20 + 20
    again: Any = {"use_reentrant": False, "preserve_rng_state": False}
    assert kept_bytes(lambda: checkpoint(lambda y: y.exp().exp(), 2 * x, **again), []) == 40 + 40


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clifford.json"
    assert main(["clifford", "--quick", "--inputs", "layers", "kept for the gradient", "--out", str(out)]) == 0
    assert "EquiLinear, 64 x 8, 64 scalars, with gradient geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    (series, others), notes = [part.series for part in report.parts], [x for part in report.parts for x in part.notes]
    assert not others and not [note for note in notes if "raised" in note]
    timed = [s for s in series if s.case == "algebra"]
    assert len(timed) == 4 and all(s.scores()["error_rel"] < 2e-6 for s in timed)
    kept = [s.scores() for s in series if s.case == "kept for the gradient"]
    assert all(value > 0 for scores in kept for value in scores.values()) and len(kept) >= 3
