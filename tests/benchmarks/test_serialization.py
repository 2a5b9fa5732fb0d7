"""The serialization benchmark: its torch forms against the definitions in plain integers, one run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.__main__ import main
from benchmarks.code_peers import (
    BITS,
    geom,
    hilbert_decode,
    hilbert_encode,
    morton_decode,
    morton_encode,
    torch_bits,
    traverse_decode,
    traverse_encode,
)
from benchmarks.report import Report
from benchmarks.serialization import draw

FORMS = {
    "hilbert": (hilbert_encode, hilbert_decode),
    "morton": (morton_encode, morton_decode),
    "traverse": (traverse_encode, traverse_decode),
}


def cube(bits: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(1 << bits)] * 3)


def skilling(cell: list[int], bits: int) -> int:
    """Programming the Hilbert curve, 2004, in his own words: excess work undone, then the Gray code."""
    x, bit = list(cell), 1 << bits - 1
    while bit:
        for axis in range(3):
            if x[axis] & bit:
                x[0] ^= bit - 1
            else:
                swap = (x[0] ^ x[axis]) & bit - 1
                x[0], x[axis] = x[0] ^ swap, x[axis] ^ swap if axis else x[0] ^ swap
        bit >>= 1
    code, parity = 0, 0
    for plane in reversed(range(bits)):
        for axis in range(3):
            parity ^= x[axis] >> plane & 1
            code = code << 1 | parity
    return code


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_cell_has_its_place(form: str, bits: int) -> None:
    encode, decode = FORMS[form]
    cells = cube(bits)
    code = encode(cells, bits)
    assert torch.equal(code.sort().values, torch.arange(len(cells)))
    assert torch.equal(decode(code, bits), cells)
    if form != "morton":
        assert (decode(torch.arange(len(cells)), bits).diff(dim=0).abs().sum(1) == 1).all(), "steps of one cell"


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 11, 16])
def test_codes_are_those_of_the_definition(bits: int) -> None:
    cells = torch.randint(1 << bits, (50, 3), generator=torch.Generator().manual_seed(bits))
    assert hilbert_encode(cells, bits).tolist() == [skilling(cell, bits) for cell in cells.tolist()]
    interleaved = [sum((c[a] >> i & 1) << 3 * i + 2 - a for i in range(bits) for a in range(3)) for c in cells.tolist()]
    assert morton_encode(cells, bits).tolist() == interleaved
    for encode, decode in FORMS.values():
        assert torch.equal(decode(encode(cells, bits), bits), cells)


def test_geom_and_torch_agree() -> None:
    points = 50 * torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    given = draw(points, 1000, 500)
    assert int(given.cells.max()).bit_length() == BITS
    ours, theirs = geom(given, "cpu"), torch_bits(given, "cpu")
    assert set(ours) == set(theirs)
    for method in ours:
        a, b = (library[method].read(library[method].call()) for library in (ours, theirs))
        assert torch.equal(a, b), method


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))  # where nothing is: geom's own street
    out = tmp_path / "serialization.json"
    assert main(["serialization", "--quick", "--out", str(out)]) == 0
    assert "four orders geom" in capfd.readouterr().out
    report = Report.load(out)
    assert [part.clock for part in report.parts] == ["cpu", "wall"]
    for part in report.parts:
        assert not [note for note in part.notes if "raised" in note or "not on one thread" in note]
        assert {"geom", "torch"} <= {s.library for s in part.series}
        assert {"Hilbert", "Hilbert, decode", "Hilbert, 500", "Hilbert, 50,000", "four orders"} <= {
            s.method for s in part.series
        }
        for s in part.series:
            if s.case != "steps":
                assert s.case == "scan_street" and s.scores() == {"wrong": 0}, (s.library, s.method, s.scores())
    steps = {(s.method, s.library): s.scores() for s in report.parts[0].series if s.case == "steps"}
    assert all(len(steps["xyz:", "geom"]) == 5 == len(scores) for scores in steps.values())
    for cloud, true in steps["xyz:", "geom"].items():
        hilbert, published, random = (
            steps[row][cloud] for row in (("hilbert:", "geom"), ("xyz:", "published"), ("none:", "torch.randperm"))
        )
        assert hilbert < true < 0.8 * published < 0.8 * random, cloud
