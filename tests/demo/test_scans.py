"""The scans that come with the package: what they are, and that their script still makes them."""

import runpy
from importlib.resources import files

import numpy as np
import pytest

from geom.demo.registration import Pair, read_pair
from geom.errors import FileFormatError

NAMES = ["street", "object"]


def shipped(name: str) -> Pair:
    return read_pair(files("geom.assets") / f"scan_{name}.npz")


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(files("geom.assets") / "make_scans.py"))


@pytest.mark.parametrize("name", NAMES)
def test_the_script_makes_what_is_shipped(name: str, script: dict) -> None:
    made, pair = script[f"make_{name}"](), shipped(name)
    grid = script[f"{name.upper()}_GRID"]  # another processor's sine may tip a coordinate over to the next grid line
    for array, cloud in ((made["src"], pair.source), (made["tgt"], pair.target)):
        assert array.shape == tuple(cloud.shape)
        off = np.abs(array - cloud.numpy())
        assert off.max() <= 1.01 * grid and (off > 1e-6).mean() < 1e-3
    np.testing.assert_allclose(made["T_tgt_src"], pair.T_target_source.to_matrix().numpy(), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_is_another_scan(name: str, script: dict) -> None:
    a, b = script[f"make_{name}"](), script[f"make_{name}"](seed=1)
    assert a["src"].shape != b["src"].shape or (a["src"] != b["src"]).any()


@pytest.mark.parametrize(
    ("name", "few", "many", "noise"), [("street", 12_000, 18_000, 0.03), ("object", 6_000, 10_000, 0.002)]
)
def test_the_pose_lays_source_onto_target(name: str, few: int, many: int, noise: float) -> None:
    """Half the source has a target point about as near as the sampling allows, and not all: each sees its own part."""
    from scipy.spatial import cKDTree

    pair = shipped(name)
    for cloud in (pair.source, pair.target):
        assert few <= len(cloud) <= many and cloud.isfinite().all()
    tree = cKDTree(pair.target.numpy())
    moved = pair.T_target_source.apply(pair.source.double()).numpy()
    right, wrong = (np.median(tree.query(x)[0]) for x in (moved, moved + 20 * noise))
    assert right < 0.5 * wrong
    far = tree.query(moved)[0]
    assert (far > 10 * np.median(far)).mean() > 0.01


def test_files_are_small() -> None:
    for name in NAMES:
        assert len((files("geom.assets") / f"scan_{name}.npz").read_bytes()) < 350_000


def test_a_file_that_is_no_pair(tmp_path) -> None:
    bad = tmp_path / "bad.npz"
    clouds = {"src": np.zeros((5, 3), np.float32), "tgt": np.zeros((5, 3), np.float32), "T_tgt_src": np.eye(4)}
    for change in (
        {"src": np.zeros((5, 2), np.float32)},
        {"tgt": np.zeros(5, np.float32)},
        {"T_tgt_src": np.eye(3)},
        {"src": np.full((5, 3), np.nan, np.float32)},
        {"src": np.array([None])},
    ):
        np.savez(bad, **{**clouds, **change})
        with pytest.raises(FileFormatError, match=r"bad\.npz"):
            read_pair(bad)
    np.savez(bad, src=clouds["src"])
    with pytest.raises(FileFormatError, match="tgt"):
        read_pair(bad)
    for data in (b"", b"PK\x03\x04", b"hello", b"\x93NUMPY"):
        bad.write_bytes(data)
        with pytest.raises(FileFormatError):
            read_pair(bad)
    np.savez(bad, **clouds)
    assert len(read_pair(bad).source) == 5
