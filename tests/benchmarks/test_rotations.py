"""The rotations benchmark: its reference against scipy, its measures of error on libraries that are wrong, one run."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness import Case, Contender, Moment, Plan, Sample, Series, measure
from benchmarks.report import BEST_PEER, Part, Report
from benchmarks.rotation_peers import Given, Operation, formulas, geom, scipy, textbook
from benchmarks.rotations import draw, rotations_of, round_trip_errors, wrong_ways
from benchmarks.tables import markdown_tables, text_tables

QUATERNION, MATRIX = ("exp", "log"), ("vector to matrix", "matrix to vector")


def result(operation: Operation, given: Given) -> torch.Tensor:
    return operation.read(operation.call(*operation.prepare(given))).detach()


def test_the_reference_agrees_with_scipy() -> None:
    given, ours, theirs = rotations_of(draw(200)), formulas(), scipy()
    assert set(ours) == set(geom()) and set(ours) - set(theirs) == {"6D to matrix", "gradient of log(exp)"}
    for method in theirs:
        a, b = (result(library[method], given) for library in (ours, theirs))
        b = torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b) if a.shape[-1] == 4 else b
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0, msg=lambda text, method=method: f"{method}: {text}")


def test_inputs_are_the_same_every_time() -> None:
    assert all(torch.equal(a, b) for a, b in zip(draw(10), draw(10), strict=True))
    given = draw(1000).to(torch.float64)
    turns = result(formulas()["distance"], given)
    assert 0 < turns.min() < 0.1 and 3.0 < turns.max() < 3.1415, "short ones, long ones, none within rounding of pi"


@pytest.mark.parametrize("path", [QUATERNION, MATRIX])
@pytest.mark.parametrize(("kind", "bound"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_geom_comes_back(path: tuple[str, str], kind: torch.dtype, bound: float) -> None:
    value, slope = round_trip_errors(geom(), *path, kind)
    assert value < bound and slope is not None and slope < 2 * bound


def test_scipy_has_no_gradient() -> None:
    value, slope = round_trip_errors(scipy(), *QUATERNION, torch.float64)
    assert value < 1e-15 and slope is None


def test_trace_and_acos_are_found_wrong() -> None:
    assert round_trip_errors(textbook(), *MATRIX, torch.float64) == (1, 1)
    assert wrong_ways(textbook(), 20_000) > 0


def test_both_signs_are_right_at_pi_and_nowhere_else() -> None:
    same = Operation(lambda g: (g.rotvec,), lambda v: v)

    def other_sign(beyond: float) -> Operation:
        def flip(v: torch.Tensor) -> torch.Tensor:
            angle = v.norm(dim=-1, keepdim=True)
            return torch.where(angle > beyond, v * (1 - 2 * math.pi / angle.clamp(min=1)), v)

        return Operation(lambda g: (g.rotvec,), flip)

    library = {"out": same, "at pi": other_sign(math.pi - 1e-15), "before": other_sign(3.1)}
    value, slope = round_trip_errors(library, "out", "at pi", torch.float64)
    assert value < 1e-15 and slope is not None and slope < 1e-15
    assert round_trip_errors(library, "out", "before", torch.float64) == (1, 1)


def test_nan_is_an_error() -> None:
    library = {
        "exp": Operation(lambda g: (g.rotvec,), lambda v: v),
        "log": Operation(lambda g: (), lambda v: v / 0 * 0),
    }
    assert round_trip_errors(library, *QUATERNION, torch.float32) == (1, 1)


def test_the_long_way_round_is_wrong() -> None:
    known = formulas()

    def long(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        w, xyz = a.split((1, 3), -1)
        turn = known["compose"].call(torch.cat([w, -xyz], -1), b)
        return known["compose"].call(a, known["exp"].call(t * known["log"].call(turn)))

    library = {"slerp": known["slerp"]._replace(call=long)}
    assert 4500 < wrong_ways(library, 10_000) < 5500, "where a* b has w < 0"
    assert wrong_ways(geom(), 10_000) == 0


def test_calls_are_repeated_and_divided_by() -> None:
    time, worked = 0.0, []

    def work() -> int:
        nonlocal time
        time += 2.0
        worked.append(1)
        return len(worked)

    a = Contender("a", "method", lambda seed: work, lambda output, seed: {"calls": output}, calls=5)
    ((series,), _) = measure(Case("case", [a]), Plan(1, 1), clock=lambda: Moment(time, time), pause=0)
    assert series.samples == [Sample(0, 2000, 2000, {"calls": 10})], "five to warm up, five counted"
    ((series,), _) = measure(Case("case", [a], timed=False), Plan(7, 5), pause=0)
    assert series.samples == [Sample(0, 0, 0, {"calls": 15})], "one run, of no time"


@pytest.fixture
def report() -> Report:
    def series(case: str, library: str, times: list[float], error: float) -> Series:
        return Series(case, library, "exp", [Sample(0, x, 2 * x, {"error_abs": error}) for x in times])

    exact = Series("accuracy", "geom", "log(exp)", [Sample(0, 0, 0, {"matrix_f64": 3e-16})])
    small = [series("10", "geom", [9, 1, 8], 1), series("10", "roma", [3, 2, 4], 2), series("10", "pypose", [4], 3)]
    large = [series("90", "geom", [6], 4), series("90", "roma", [5], 5), series("90", "pypose", [9, 4], 6)]
    parts = [Part("cpu", 1, 1, [*small, *large, exact], []), Part("wall", 2, 2, large, [])]
    machine = {"cpu": "a CPU", "cores": 2}
    versions = {"torch": "1.2", "roma": "3.4", "open3d": "5.6"}
    return Report("rotations", BEST_PEER, "cpu", "2026-01-02", "abc", machine, versions, 3, 1, ["said"], parts)


def test_ratios_are_to_the_best_peer_by_the_least_times(report: Report) -> None:
    rows = [line.split() for line in text_tables(report).splitlines()]
    assert ["exp", "geom", "1.0", "8.0", "0.50", "-", "-", "-", "1"] in rows, "least, median, ratio"
    assert ["exp", "roma", "5.0", "5.0", "1.25", "10.0", "10.0", "1.25", "5"] in rows
    assert ["log(exp)", "geom", "-", "-", "-", "-", "-", "-", "3e-16"] in rows


def test_markdown_is_one_line_for_each_operation(report: Report) -> None:
    text = markdown_tables(report)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[2] == ["exp", "6.0", "5.0", "**4.0**", "0.50", "1.50", "1.50", "4", "6"]
    assert len(rows[0]) == len(rows[1]) == len(rows[2])
    assert rows[3] == ["", "matrix f64"] and rows[5:] == [["log(exp) geom", "3e-16"]]
    assert "roma 3.4, torch 1.2." in text and "open3d" not in text and "- said" in text


def test_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rotations.json"
    assert main(["rotations", "--quick", "--inputs", "1000", "--out", str(out)]) == 0
    assert "6D to matrix geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note or "not on one thread" in note]
        assert {s.method for s in part.series if s.library == "geom"} == set(formulas())
        for s in part.series:
            assert s.case == "1000" and len(s.samples) == 3 and all(x.wall_ms > 0 for x in s.samples)
            assert s.scores()["error_abs"] < 2e-5, (s.library, s.method, s.scores())
