"""Cables in files, guesses from clips, DEFT's score, and the fits we ship against the motion capture."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError, ShapeError
from geom.rods import (
    Cable,
    Residual,
    Rod,
    guess_rod,
    load_cable,
    make_rod,
    predict,
    predict_with,
    save_cable,
    track_errors,
)
from geom.rods.clips import branched_errors
from geom.values import replace

SHIPPED = sorted((Path(__file__).parents[2] / "assets" / "rods").glob("*.json"))


def cable() -> Cable:
    x = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0], [0.2, 0, -0.1], [0.2, 0, -0.2]])
    rod = make_rod(x, EI=1e-3, GJ=2e-3, offsets=torch.tensor([0, 4, 6]), junctions=[(2, 1)], viscosity=0.01)
    return Cable(rod, (0, 3), (3,), 50.0, 2, ((2, 2),))


def test_a_cable_comes_back_from_its_file(tmp_path: Path) -> None:
    saved = cable()
    save_cable(tmp_path / "a.json", saved, {"mean": 0.5})
    found = load_cable(tmp_path / "a.json")
    assert found._replace(rod=saved.rod) == saved
    for name in ("parent", "length", "mass", "bend_stiffness", "stretch_stiffness", "curvature", "viscosity"):
        assert torch.equal(getattr(found.rod, name), getattr(saved.rod, name))
    record = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
    assert record["report"] == {"mean": 0.5}
    assert load_cable(tmp_path / "a.json", dtype=torch.float64).rod.mass.dtype == torch.float64


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.pop("rod"),
        lambda r: r["rod"].pop("mass"),
        lambda r: r["rod"]["mass"].pop(),
        lambda r: r["rod"]["mass"].__setitem__(0, -1.0),
        lambda r: r["rod"]["mass"].__setitem__(0, "x"),
        lambda r: r["rod"]["parent"].__setitem__(2, 4),
        lambda r: r["rod"]["parent"].__setitem__(0, 0),
        lambda r: r["rod"].__setitem__("viscosity", [1.0]),
        lambda r: r.__setitem__("geom", "rig"),
        lambda r: r.__setitem__("rate", None),
    ],
)
def test_a_spoilt_file_is_named(spoil, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_cable(path, cable())
    record = json.loads(path.read_text())
    spoil(record)
    path.write_text(json.dumps(record))
    with pytest.raises(FileFormatError, match=re.escape(str(path))):
        load_cable(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{", b"nan"])
def test_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="cable"):
        load_cable(path)


def test_guess_of_a_branched_cable() -> None:
    torch.manual_seed(0)
    still = cable().rod
    x = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0], [0.2, 0, -0.1], [0.2, 0, -0.2]])
    guess = guess_rod(x.expand(2, 5, 6, 3), branches=((2, 2),))
    assert torch.equal(guess.parent, still.parent)
    torch.testing.assert_close(guess.length, still.length)
    assert float(guess.curvature[4].norm()) == pytest.approx(2.0, abs=1e-5)  # a right angle: 2 tan 45
    for bad in (((0, 2),), ((4, 2),), ((2, 6),), ((2, 0),)):
        with pytest.raises(ShapeError, match="branches"):
            guess_rod(x.expand(2, 5, 6, 3), branches=bad)


def test_branched_errors_are_deft_s() -> None:
    torch.manual_seed(0)
    track, predicted = torch.randn(2, 7, 9, 3).double(), torch.randn(2, 7, 9, 3).double()  # parent 5, children 3 and 1
    branches = ((1, 3), (3, 1))
    rods = torch.zeros(2, 2, 5, 3, 5, 3).double()  # (which, clip, frame, rod, place, xyz), padded with zeros
    for i, x in enumerate((predicted[:, 2:], track[:, 2:])):
        rods[i, :, :, 0] = x[:, :, :5]
        rods[i, :, :, 1, :4] = torch.cat([x[:, :, [1]], x[:, :, 5:8]], 2)
        rods[i, :, :, 2, :2] = torch.cat([x[:, :, [3]], x[:, :, 8:]], 2)
    expected = (rods[0] - rods[1]).square().mean((2, 3, 4)).sum(1).div(7).sqrt()
    torch.testing.assert_close(branched_errors(predicted, track, branches), expected)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_cables_predict_clips_that_were_held_out(path: Path, data: Path) -> None:
    clips = sorted((data / "rods").glob(f"*_{path.stem}_train.npz"))
    if not clips:
        pytest.skip(f"no motion capture of {path.stem}")
    shipped = load_cable(path)
    track = torch.tensor(np.load(clips[0])["x"][::20])
    with torch.no_grad():
        predicted = predict(
            shipped.rod,
            track,
            clamped=shipped.clamped,
            held=shipped.held,
            dt=1 / shipped.rate,
            substeps=shipped.substeps,
        )
    report = json.loads(path.read_text())["report"]
    held_out = report["held_out_clips"][::4][: len(track)]
    torch.testing.assert_close(100 * track_errors(predicted, track), torch.tensor(held_out), rtol=0.05, atol=0.02)
    weights = path.with_suffix(".safetensors")
    if weights.exists():
        with torch.no_grad():
            better = predict_with(
                shipped.rod,
                Residual.load(weights),
                track,
                clamped=shipped.clamped,
                held=shipped.held,
                dt=1 / shipped.rate,
                substeps=shipped.substeps,
            )
        told = report["with_residual"]["residual"]["held_out_clips"][::4][: len(track)]
        torch.testing.assert_close(100 * track_errors(better, track), torch.tensor(told), rtol=0.05, atol=0.02)
        assert report["with_residual"]["residual"]["held_out_mean"] < report["held_out_mean"]
    for mid in (data / "rods").glob(f"*_{path.stem}_mid_clamp_train.npz"):  # the rod fitted to both, held elsewhere
        track_mid = torch.tensor(np.load(mid)["x"][::5])
        with torch.no_grad():
            other = predict(shipped.rod, track_mid, clamped=(2, shipped.clamped[-2], shipped.clamped[-1]))
        told = report["mid_clamp_held_out_clips"][: len(track_mid)]
        torch.testing.assert_close(100 * track_errors(other, track_mid), torch.tensor(told), rtol=0.05, atol=0.02)
    plain = replace(shipped.rod, curvature=0 * shipped.rod.curvature, bend_stiffness=0.3 * shipped.rod.bend_stiffness)
    assert isinstance(plain, Rod)
    with torch.no_grad():
        worse = track_errors(predict(plain, track, clamped=shipped.clamped), track)
    assert float(worse.mean()) > 1.1 * float(track_errors(predicted, track).mean())
