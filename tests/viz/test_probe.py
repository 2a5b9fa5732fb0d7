"""The probe asks once, keeps good news across processes, and turns every failure into words."""

import json
import subprocess
import sys

import numpy as np
import pytest

from geom.errors import MissingDependencyError
from geom.viz import Probe, RendererError, filament

probing = sys.modules["geom.viz.probe"]  # the package's `probe` is the function
fresh = probing.probe.__wrapped__


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "geom" / "open3d-draws.json"


def answer(image, printed=""):
    return lambda job: ({"image": image}, printed)


RED = np.tile(np.array([255, 0, 0], np.uint8), (64, 64, 1))


def test_good_news_is_kept(monkeypatch, cache):
    monkeypatch.setattr(probing, "find_spec", lambda name: True)
    monkeypatch.setattr(probing, "run_worker", answer(RED, "Vulkan device driver: llvmpipe"))
    assert fresh() == Probe(True, software=True)
    monkeypatch.setattr(probing, "run_worker", None)  # not asked again
    assert fresh() == Probe(True, software=True)
    kept = json.loads(cache.read_text())
    kept["environment"]["open3d"] = "0.1"
    cache.write_text(json.dumps(kept))
    monkeypatch.setattr(probing, "run_worker", answer(RED, "NVIDIA"))
    assert fresh() == Probe(True, software=False)
    cache.write_text("nonsense")
    assert fresh() == Probe(True, software=False)


def test_bad_news_is_not_kept(monkeypatch, cache):
    def fail(job):
        raise RendererError("no driver")

    monkeypatch.setattr(probing, "find_spec", lambda name: True)
    monkeypatch.setattr(probing, "run_worker", fail)
    assert fresh() == Probe(False, reason="no driver") and not cache.exists()
    monkeypatch.setattr(probing, "run_worker", answer(0 * RED))
    assert "where red was asked for" in fresh().reason and not cache.exists()


def test_without_open3d(monkeypatch, cache):
    monkeypatch.setattr(probing, "find_spec", lambda name: None)
    assert not fresh().works and "pip install 'geom-toolkit[viz]'" in fresh().reason


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('libvulkan.so.1 is not there')", "libvulkan.so.1 is not there"),
        ("import os; os.kill(os.getpid(), 11)", "died of signal 11"),
        ("pass", "no picture came"),
        ("import time; time.sleep(60)", "within 1 s"),
    ],
)
def test_a_worker_that_fails(monkeypatch, program, words):
    real = subprocess.run

    def run(command, **options):
        return real([command[0], "-S", "-c", program], **options)

    monkeypatch.setattr(filament.subprocess, "run", run)
    monkeypatch.setattr(filament, "_TIME_LIMIT", 1.0 if "sleep" in program else 20.0)
    with pytest.raises(MissingDependencyError, match=words) as caught:
        filament.run_worker({})
    assert "apt-get install -y libusb-1.0-0" in str(caught.value)
