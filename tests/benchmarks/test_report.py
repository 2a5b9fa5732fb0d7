"""The JSON comes back as it was; tables say what it holds; a README changes between the markers only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import Sample, Series
from benchmarks.report import Part, Report, describe_machine, git_commit, package_versions
from benchmarks.tables import markdown_tables, rewrite_block, text_tables
from geom.errors import FileFormatError


def series(library: str, milliseconds: float, error: float, case: str = "street") -> Series:
    samples = [Sample(seed, milliseconds, 2 * milliseconds, {"rotation_deg": error}) for seed in range(3)]
    return Series(case, library, "gicp", samples)


@pytest.fixture
def report() -> Report:
    both = [series("geom", 30.0, 0.25), series("small_gicp", 20.0, 0.5)]
    again = [series("geom", 60.0, 0.25, "object"), series("small_gicp", 10.0, 0.5, "object")]
    parts = [Part("cpu", 1, 1, both + again, ["open3d: left out"]), Part("wall", 8, 8, both, ["open3d: left out"])]
    machine = {**describe_machine(), "cpu": "a CPU", "cores": 8}
    versions = {"torch": "1.2.3", "small-gicp": "4.5.6"}
    return Report(
        "registration-local",
        "small_gicp",
        "cpu",
        "2026-01-02T03:04:05+00:00",
        "abc",
        machine,
        versions,
        3,
        3,
        [],
        parts,
    )


def test_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    report.save(path)
    assert Report.load(path) == report


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"cpu_ms"', '"cpu"'),
        lambda text: text.replace('"commit"', '"comet"'),
        lambda text: text.replace('"parts": [', '"parts": [3, '),
    ],
)
def test_another_file_is_refused(spoil, report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(FileFormatError, match=r"report\.json.*expected a benchmark's JSON"):
        Report.load(path)


def test_what_it_ran_on_is_written() -> None:
    assert {"python", "torch", "numpy", "warp-lang", "geom-toolkit"} <= set(package_versions())
    assert describe_machine()["cores"] >= 1 and describe_machine()["cpu"]
    assert git_commit()


def test_text_has_times_ratios_and_errors(report: Report) -> None:
    lines = text_tables(report).splitlines()
    row = next(line for line in lines if line.startswith("gicp geom"))
    assert row.split() == ["gicp", "geom", "30.0", "1.50", "60.0", "1.50", "0.25"]
    assert lines.count("open3d: left out") == 1


def test_markdown_has_the_mean_the_worst_and_every_case(report: Report) -> None:
    text = markdown_tables(report)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["gicp", "geom", "3.00 (1.50 to 6.00)", "1.50 (1.50 to 1.50)", "0.25"] in rows
    assert ["object", "gicp", "60.0", "10.0", "-", "-", "0.25 deg", "0.5 deg"] in rows
    assert "2026-01-02" in text and "commit abc" in text and "small-gicp 4.5.6" in text
    assert len({len(row) for row in rows[:2]}) == 1


def test_markdown_says_first_that_the_machine_was_busy(report: Report) -> None:
    assert "Other work ran" not in markdown_tables(report)
    busy = replace(report, notes=["street: other work took 40% of the machine's cores"])
    assert "Other work ran" in markdown_tables(busy).splitlines()[0]


def test_small_ratios_keep_two_digits(report: Report) -> None:
    parts = [Part("cpu", 1, 1, [series("geom", 0.025, 0.25), series("small_gicp", 20.0, 0.5)], [])]
    rows = [line.split() for line in text_tables(replace(report, parts=parts)).splitlines()]
    assert [row[3] for row in rows if row[:1] == ["gicp"]] == ["0.0013", "1.00"]


def test_without_the_reference_there_are_no_ratios(report: Report) -> None:
    alone = replace(report, parts=[Part("cpu", 1, 1, [series("geom", 30.0, 0.25)], [])])
    assert "| gicp | geom | - | 0.25 |" in markdown_tables(alone)
    assert ["gicp", "geom", "30.0", "-", "0.25"] in [line.split() for line in text_tables(alone).splitlines()]


BEFORE = "# Title\r\n\r\ntext <!-- benchmark:registration-local -->"
AFTER = "<!-- /benchmark -->\r\nmore\n<!-- benchmark:neighbors -->\nkept\n<!-- /benchmark --> end, no newline"


def test_only_the_text_between_the_markers_changes(report: Report, tmp_path: Path) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "report.json"
    readme.write_bytes(f"{BEFORE}\nold\n{AFTER}".encode())
    report.save(file)
    for _ in range(2):  # the second time changes nothing
        assert main(["table", "registration-local", str(file), "--readme", str(readme)]) == 0
        text = readme.read_bytes().decode()
        assert text == f"{BEFORE}\n{markdown_tables(report)}\n{AFTER}"


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- benchmark:a --> no end",
        "<!-- /benchmark --> <!-- benchmark:a -->",
        "<!-- benchmark:a --> <!-- /benchmark --> <!-- benchmark:a --> <!-- /benchmark -->",
        "<!-- benchmark:a --> <!-- benchmark:b --> <!-- /benchmark -->",
        "<!-- benchmark:b --> <!-- /benchmark -->",
    ],
)
def test_markers_that_are_wrong_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected <!-- benchmark:a --> once"):
        rewrite_block(text, "a", "new")


def test_a_readme_without_markers_is_left_alone(report: Report, tmp_path: Path, capsys) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "report.json"
    readme.write_text("nothing")
    report.save(file)
    assert main(["table", "registration-local", str(file), "--readme", str(readme)]) == 2
    assert readme.read_text() == "nothing"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_table_of_another_benchmark_is_refused(report: Report, tmp_path: Path, capsys) -> None:
    file = tmp_path / "report.json"
    report.save(file)
    assert main(["table", "neighbors", str(file)]) == 2
    assert "expected a report of neighbors" in capsys.readouterr().err
    assert json.loads(file.read_text())["benchmark"] == "registration-local"
