"""The tour: every file it promises, numbers within bounds, and no pictures where none can be drawn."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from geom import demo
from geom.cli import main
from geom.demo import pictures, registration
from geom.errors import GeomError
from geom.lie import Rigid

# rotation (degrees) and translation (metres) against the exact pose; about three times what was found
BOUNDS = {"street": (0.06, 0.012), "teapot": (0.15, 0.0015)}


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    demo.run(out)
    return out


def test_every_file_is_there(tour: Path) -> None:
    names = {path.name for path in tour.iterdir()}
    assert names == {"numbers.json", "index.html", *(f"{name}.{kind}" for name in BOUNDS for kind in ("png", "html"))}


def test_numbers_are_within_bounds(tour: Path) -> None:
    found = json.loads((tour / "numbers.json").read_text())
    assert found["versions"]["torch"]
    assert set(found["registration"]) == set(BOUNDS)
    for name, (degrees, metres) in BOUNDS.items():
        numbers = found["registration"][name]
        assert numbers["rotation_error_deg"] < degrees and numbers["translation_error_m"] < metres
        assert numbers["converged"] and numbers["overlap"] > 0.5 and numbers["seconds"] > 0
        assert len(numbers["translation_sd_m"]) == len(numbers["rotation_sd_deg"]) == 3
        assert numbers["rmse_m"] > 0 and numbers["degenerate_directions"] == []


def test_the_page_links_only_to_its_neighbours(tour: Path) -> None:
    links = Links((tour / "index.html").read_text()).found
    assert len(links) == 1 + 2 * len(BOUNDS)
    for link in links:
        assert "/" not in link and (tour / link).is_file()


def test_the_page_has_a_row_for_each_pair(tour: Path) -> None:
    page = (tour / "index.html").read_text()
    for name in BOUNDS:
        assert f"<td>{name}</td>" in page and f"<h3>{name}</h3>" in page
    assert torch.__version__ in page


def test_without_pictures_numbers_and_page_still_come(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GeomError("nothing draws <here>")

    monkeypatch.setattr(pictures, "render", fail)
    results = demo.run(tmp_path)
    assert [result.picture for result in results] == [None, None]
    assert {path.name for path in tmp_path.iterdir()} == {"numbers.json", "index.html"}
    assert "nothing draws &lt;here&gt;" in (tmp_path / "index.html").read_text()


def test_a_bad_file_costs_only_its_own_row(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "data" / "registration" / "lidar"
    folder.mkdir(parents=True)
    (folder / "bad.npz").write_bytes(b"hello")
    monkeypatch.setenv("GEOM_DATA", str(tmp_path / "data"))
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "1 of 3 jobs failed: bad: " in said.err and said.err.count("\n") == 1 and "3 jobs in" in said.out
    numbers = json.loads((out / "numbers.json").read_text())["registration"]
    assert list(numbers["bad"]) == ["problem"] and numbers["street"]["converged"]
    assert "failed</td>" in (out / "index.html").read_text()


def test_real_pairs_come_first(data: Path) -> None:
    names = [name for name, _ in registration.chapter(data).jobs]
    real = [p.stem for kind in ("lidar", "rgbd") for p in sorted((data / "registration" / kind).glob("*.npz"))]
    assert names == [*real, "street", "teapot"]


def test_a_start_is_as_wrong_as_it_says() -> None:
    truth = Rigid.from_matrix(torch.eye(4, dtype=torch.float64))
    about = torch.tensor([40.0, -7.0, 2.0])
    start = registration.perturb(truth, about, degrees=5, metres=0.5, seed=3)
    degrees, _ = registration.pose_error(start, truth)
    assert degrees == pytest.approx(5, abs=1e-9)
    moved = start.apply(about.double()[None])[0] - about
    assert float(moved.norm()) == pytest.approx(0.5, abs=1e-9)
    other = registration.perturb(truth, about, degrees=5, metres=0.5, seed=4)
    assert registration.pose_error(start, other)[0] > 0.1


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 1e-3, 90.0, 180.0])
def test_pose_errors_are_exact_at_small_and_large_angles(degrees: float) -> None:
    truth = Rigid.from_matrix(torch.eye(4, dtype=torch.float64))
    turned = registration.perturb(truth, torch.zeros(3), degrees=degrees, metres=2.0, seed=0)
    found = registration.pose_error(turned, truth)
    assert found == pytest.approx((degrees, 2.0), rel=1e-6, abs=1e-12)


def test_where_the_data_lie(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GEOM_DATA", str(tmp_path))
    assert demo.data_folder() == tmp_path
    monkeypatch.setenv("GEOM_DATA", str(tmp_path / "none"))
    assert demo.data_folder() is None
    monkeypatch.delenv("GEOM_DATA")
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert demo.data_folder() == Path("../shared/data")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        demo.run(tmp_path / "file" / "demo")
