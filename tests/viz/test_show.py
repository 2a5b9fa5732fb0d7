"""A window with a display, a picture without."""

import logging
import sys

import numpy as np
import pytest
import torch

from geom.meshes import Mesh
from geom.viz import Camera, Lines, View, show

VIEW = View(size=(40, 30), camera=Camera((0, -4, 0), (0, 0, 0)))


@pytest.fixture
def no_display(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


def test_saves_a_picture(no_display, caplog):
    with caplog.at_level(logging.INFO, logger="geom.viz"):
        path = show(torch.zeros(1, 3), view=VIEW, title="My scan: 1/2")
    assert path is not None and path.name == "My-scan-1-2.png" and (no_display / path).read_bytes()[1:4] == b"PNG"
    assert any(str(no_display / path) in r.getMessage() for r in caplog.records)
    assert show(torch.zeros(1, 3), view=VIEW) == type(path)("geom.png")
    assert show(torch.zeros(1, 3), view=VIEW, path=no_display / "a.png") == no_display / "a.png"


def test_opens_a_window(no_display, monkeypatch):
    o3d = pytest.importorskip("open3d")
    calls = []
    monkeypatch.setattr(o3d.visualization, "draw", lambda shapes, **options: calls.append((shapes, options)))
    monkeypatch.setenv("DISPLAY", ":0")
    things = torch.rand(5, 3), Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]]))
    line = Lines(torch.rand(2, 3), torch.tensor([[0, 1]]))
    assert show(*things, line, view=VIEW, title="Scan") is None
    (shapes, options), *_ = calls
    assert [len(s["geometry"].points) for s in shapes if "points" in s["name"]] == [5]
    assert [s["material"].shader for s in shapes] == ["defaultUnlit", "defaultLit", "unlitLine"]
    assert options["title"] == "Scan" and (options["width"], options["height"]) == (40, 30)
    assert np.linalg.norm(options["eye"] - options["lookat"]) == pytest.approx(4)
    assert not list(no_display.iterdir())


def test_a_display_without_open3d(no_display, monkeypatch, caplog):
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr(sys.modules["geom.viz.show"], "find_spec", lambda name: None)
    path = show(torch.zeros(1, 3), view=VIEW)
    assert path is not None and path.exists()
    assert any("geom-toolkit[viz]" in r.getMessage() for r in caplog.records)
