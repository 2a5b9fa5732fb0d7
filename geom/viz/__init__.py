"""Looking at things: pictures without a display, windows, and pages that hold their own viewer."""

from geom.viz.camera import Camera, View
from geom.viz.filament import RendererError
from geom.viz.probe import Probe, probe
from geom.viz.render import render, save_png
from geom.viz.scene import Lines

__all__ = ["Camera", "Lines", "Probe", "RendererError", "View", "probe", "render", "save_png"]
