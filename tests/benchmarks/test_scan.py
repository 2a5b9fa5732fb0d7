"""The scan benchmark: its torch forms against geom, results that are wrong, bytes that are held, one run."""

from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.report import Report
from benchmarks.rows import error_of
from benchmarks.scan import GROUPS, extra_bytes, rows_of
from benchmarks.scan_peers import chunked_attention, chunked_scan, loop_attention, loop_scan
from geom.sequence import linear_attention, selective_scan

ROWS = [row for group in GROUPS for row in rows_of(group, "cpu", quick=True)]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan_operands(step: float) -> list[torch.Tensor]:
    delta = torch.full((2, 3, 37), step, dtype=torch.float64)
    rates = -torch.arange(1.0, 5.0, dtype=torch.float64).repeat(3, 1)
    return [draw(0, 2, 3, 37), delta, rates, draw(1, 2, 4, 37), draw(2, 2, 4, 37), draw(3, 3)]


@pytest.mark.parametrize(
    ("row", "gradient"), [pytest.param(row, g, id=f"{row.method}, {g}") for row in ROWS for g in row.gradients]
)
def test_libraries_agree(row, gradient: bool) -> None:
    # mambapy's block computes its rates in float32
    libraries = [x for x in row.libraries if x != "mambapy"]
    results = [row.work(x, torch.float64, gradient)() for x in libraries]
    right = row.work(row.exact, torch.float64, gradient)()
    assert all(error_of(found, right, together=row.together) < 1e-12 for found in results)
    if row.method.startswith(("Mamba mixer", "PCM")):
        pytest.importorskip("mambapy")
        assert error_of(row.work("mambapy", torch.float32, gradient)(), right, together=row.together) < 2e-5


@pytest.mark.parametrize("gradient", [False, True])
def test_mambapy_scans_alike(gradient: bool) -> None:
    pytest.importorskip("mambapy")
    (row,) = rows_of("scan", "cpu", quick=True)
    found, right = (row.work(x, torch.float64, gradient)() for x in ("mambapy", "loop"))
    assert len(found) == 1 + 6 * gradient and error_of(found, right) < 1e-12


def test_scans_are_the_recurrence() -> None:
    operands = scan_operands(0.1)
    right = selective_scan(*operands)
    for scan in (loop_scan, chunked_scan):
        assert error_of([scan(*operands)], [right]) < 1e-13
    one = [torch.full(shape, 1.0) for shape in ((1, 1, 3), (1, 1, 3), (1, 1), (1, 1, 3), (1, 1, 3), (1,))]
    one[2].zero_()
    assert loop_scan(*one).flatten().tolist() == [2, 3, 4]


def test_large_steps_are_too_much_for_cumulative_sums_alone() -> None:
    operands = scan_operands(20.0)
    assert error_of([loop_scan(*operands)], [selective_scan(*operands)]) < 1e-13
    assert not chunked_scan(*operands).isfinite().all()


def test_small_decays_are_not_too_much_for_chunks() -> None:
    q, k, v = (draw(seed, 2, 70, 2, 4) for seed in range(3))
    g = torch.full_like(q, -300.0)
    right = linear_attention(q, k, v, g)
    assert all(error_of([form(q, k, v, g)], [right]) < 1e-13 for form in (loop_attention, chunked_attention))


def test_bytes_held_at_once() -> None:
    x = torch.ones(1000, 1000)
    assert extra_bytes(lambda: x + x, "cpu") == pytest.approx(4e6, rel=1e-3)
    assert extra_bytes(lambda: (x + x) + (x + x), "cpu") == pytest.approx(12e6, rel=1e-3)
    assert extra_bytes(lambda: [(x + x).sum() for _ in range(5)], "cpu") == pytest.approx(4e6, rel=1e-3)
    assert extra_bytes(lambda: [x + x for _ in range(5)], "cpu") == pytest.approx(20e6, rel=1e-3)


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scan.json"
    assert main(["scan", "--quick", "--inputs", "scan", "extra memory", "threads", "--out", str(out)]) == 0
    said = capfd.readouterr()
    assert "scan, 1 x 100 x 16, with gradient geom" in said.out and "profiler" not in said.out + said.err
    (first, second), notes = (report := Report.load(out)).parts, []
    notes = [note for part in report.parts for note in part.notes if "raised" in note]
    assert not notes
    timed = [s for s in first.series if s.case == "sequences"]
    assert len([s for s in timed if s.library == "geom"]) == 2
    assert all(len(s.samples) == 3 and s.scores()["error_rel"] < 3e-6 for s in timed)
    memory = {s.library: s.scores() for s in first.series if s.case == "extra memory"}
    assert 0 < memory["geom"]["forward_MB"] < memory["geom"]["gradient_MB"]
    if "mambapy" in memory:
        assert memory["geom"]["gradient_share"] < 0.2 and memory["mambapy"]["gradient_share"] == 1
    assert all(s.case == "threads" and s.scores()["times_as_fast"] > 0 for s in second.series) and second.series
