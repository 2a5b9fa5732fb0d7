"""The kernels' one source compiles for CUDA, to PTX and without a GPU."""

from importlib import import_module
from pathlib import Path

import pytest

from geom.kernels import bridge

wp = bridge.wp


@pytest.mark.parametrize("name", bridge.MODULES)
def test_kernels_compile_for_cuda(name: str, tmp_path: Path) -> None:
    module = import_module(f"geom.kernels.{name}")
    wp.compile_aot_module(wp.get_module(module.__name__), arch=80, module_dir=tmp_path, use_ptx=True)
    (ptx,) = tmp_path.glob("*.ptx")
    assert ".visible .entry" in ptx.read_text()
