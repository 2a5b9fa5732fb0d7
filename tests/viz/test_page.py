"""The page holds everything it needs, and its buffers are the things."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from geom.errors import ShapeError
from geom.lie import Rigid
from geom.meshes import Mesh
from geom.points import Points
from geom.viz import View, save_html

SCRIPT = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.S)


def read(path):
    (text,) = SCRIPT.findall(path.read_text())
    return json.loads(text)


def decode(text, dtype, width=3):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(-1, width)


def test_buffers_are_the_things(tmp_path):
    cloud = torch.rand(20, 3, dtype=torch.float64) + 1e6
    mesh = Mesh(torch.rand(4, 3) + 1e6, torch.tensor([[0, 1, 2], [1, 2, 3]]), normals=torch.eye(4, 3))
    colors = torch.rand(20, 3)
    save_html(tmp_path / "a.html", Points(cloud, colors=colors), mesh, names=["scan", "body"])
    data = read(tmp_path / "a.html")
    scan, body = data["things"]
    np.testing.assert_allclose(decode(scan["positions"], "<f4") + np.array(data["origin"]), cloud.numpy(), atol=1e-6)
    np.testing.assert_allclose(decode(scan["colors"], "u1") / 255, colors.numpy(), atol=0.51 / 255)
    np.testing.assert_array_equal(decode(body["index"], "<u4"), mesh.faces.numpy())
    np.testing.assert_array_equal(decode(body["normals"], "i1") / 127, mesh.normals.numpy())
    assert (scan["name"], scan["count"], scan["kind"]) == ("scan", 20, "points") and body["name"] == "body"


def test_asks_nothing_of_a_network(tmp_path):
    save_html(tmp_path / "a.html", torch.rand(5, 3), Rigid.identity(), title="Scan")
    text = re.sub(SCRIPT, "", (tmp_path / "a.html").read_text())
    assert not re.search(r"https?://|//cdn|\bsrc=|\bhref=|@import|url\(|fetch\(|XMLHttp|import\(", text)
    assert "<title>Scan</title>" in text and "WebGL 2, which this browser does not offer" in text
    assert "points 1: 5 vertices" in text and "frames 2" in text


def test_hostile_names_stay_text(tmp_path):
    name, title = "</script><b>@TITLE@", "<img> & @DATA@"
    save_html(tmp_path / "a.html", torch.rand(5, 3), names=[name], title=title)
    text = (tmp_path / "a.html").read_text()
    assert read(tmp_path / "a.html")["things"][0]["name"] == name
    assert f"<title>{html.escape(title)}</title>" in text and f"<li>{html.escape(name)}: 5 vertices</li>" in text
    assert text.count("</script>") == 2


def test_view_reaches_the_page(tmp_path):
    view = View(camera=((1, 2, 3), (0, 0, 0), (0, 1, 0)), background=(0, 0, 0.5), point_size=4)
    save_html(tmp_path / "a.html", torch.zeros(1, 3), view=view)
    data = read(tmp_path / "a.html")
    assert (data["eye"], data["up"], data["background"]) == ([1, 2, 3], [0, 1, 0], [0, 0, 0.5])
    assert data["point_size"] == 4


def test_a_failure_leaves_the_old_page(tmp_path):
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(ShapeError):
        save_html(tmp_path / "a.html", torch.zeros(0, 3))
    assert (tmp_path / "a.html").read_text() == "old"


def test_script_is_valid_javascript(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to parse the page's script")
    save_html(tmp_path / "a.html", torch.rand(5, 3))
    (script,) = re.findall(r"<script>(.*?)</script>", (tmp_path / "a.html").read_text(), re.S)
    (tmp_path / "a.js").write_text(script)
    assert subprocess.run([node, "--check", tmp_path / "a.js"], capture_output=True).returncode == 0
