"""The tour: every file it promises, numbers within bounds, and no pictures where none can be drawn."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from geom import demo
from geom.cli import main
from geom.demo import pictures, registration
from geom.demo.page import _cell
from geom.demo.tour import chapters as tour_chapters
from geom.errors import GeomError
from geom.lie import Rigid

# rotation (degrees) and translation (metres) against the exact pose; about three times what was found
PICTURES = {"street": "street.png", "teapot": "teapot.png", "two grips": "two_grips.png"}
PICTURES |= {"human": "human.png", "scanned human": "scanned_human.png"}
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
    assert names == {"numbers.json", "index.html", *PICTURES.values(), *(f"{name}.html" for name in BOUNDS)}


def test_numbers_are_within_bounds(tour: Path) -> None:
    found = json.loads((tour / "numbers.json").read_text())
    assert found["versions"]["torch"]
    assert set(found) == {"versions", "registration", "cables", "characters"}
    assert {name for chapter, jobs in found.items() if chapter != "versions" for name in jobs} == set(PICTURES)
    assert set(found["registration"]) == set(BOUNDS)
    for name, (degrees, metres) in BOUNDS.items():
        numbers = found["registration"][name]
        assert numbers["rotation_error_deg"] < degrees and numbers["translation_error_m"] < metres
        assert numbers["converged"] and numbers["overlap"] > 0.5 and numbers["seconds"] > 0
        assert len(numbers["translation_sd_m"]) == len(numbers["rotation_sd_deg"]) == 3
        assert numbers["rmse_m"] > 0 and numbers["degenerate_directions"] == []


def test_the_page_links_only_to_its_neighbours(tour: Path) -> None:
    links = Links((tour / "index.html").read_text()).found
    assert sorted(links) == sorted(["numbers.json", *PICTURES.values(), *(f"{name}.html" for name in BOUNDS)])
    for link in links:
        assert "/" not in link and (tour / link).is_file()


def test_the_page_has_a_row_for_each_job(tour: Path) -> None:
    page = (tour / "index.html").read_text()
    for name in PICTURES:
        assert f"<td>{name}</td>" in page and f"<h3>{name}</h3>" in page
    assert torch.__version__ in page


def test_without_pictures_numbers_and_page_still_come(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise GeomError("nothing draws <here>")

    monkeypatch.setattr(pictures, "render", fail)
    monkeypatch.setattr(pictures, "render_strip", fail)
    results = demo.run(tmp_path)
    assert [result.name for result in results] == list(PICTURES)
    assert [result.picture for result in results] == [None] * len(PICTURES)
    assert all("nothing draws" in result.words for result in results)
    assert {path.name for path in tmp_path.iterdir()} == {"numbers.json", "index.html"}
    assert "nothing draws &lt;here&gt;" in (tmp_path / "index.html").read_text()


def test_a_bad_file_costs_only_its_own_row(tmp_path: Path, monkeypatch, capsys) -> None:
    bad = {"bad": "registration/lidar/bad.npz", "dlo1": "rods/a_dlo1_train.npz", "evil": "skinning/gltf/evil.glb"}
    for name in bad.values():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"hello")
    monkeypatch.setenv("GEOM_DATA", str(tmp_path / "data"))
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out)]) == 2
    said = capsys.readouterr()
    count = len(PICTURES) + 3
    assert f"3 of {count} jobs failed: bad: " in said.err and said.err.count("\n") == 1
    assert f"{count} jobs in" in said.out
    numbers = json.loads((out / "numbers.json").read_text())
    for chapter, name in zip(("registration", "cables", "characters"), bad, strict=True):
        assert list(numbers[chapter][name]) == ["problem"]
        assert f"{name}: " in said.err
    assert numbers["registration"]["street"]["converged"] and numbers["characters"]["scanned human"]["converged"]
    assert (out / "index.html").read_text().count("failed</td>") == 3


def test_every_column_is_one_that_a_job_fills(tmp_path: Path, data: Path) -> None:
    """A name misspelt in a column would be an empty cell in every row."""
    for chapter in tour_chapters(data)[1:]:  # a registration fills all
        done = [job(tmp_path).numbers for _, job in [*chapter.jobs[:1], *chapter.jobs[-2:]]]
        for heading, form in chapter.columns.items():
            assert any(_cell(form, numbers) != "-" for numbers in done), heading


def test_a_cell_without_its_number_is_a_dash() -> None:
    assert _cell("{a:.1f}, {b}", {"a": 1.25, "b": 2}) == "1.2, 2"
    assert _cell("{a:.1f}, {b}", {"a": 1.25}) == "-"


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
