"""Looking at things: pictures without a display, windows, and pages that hold their own viewer."""

from geom.viz.camera import Camera, View
from geom.viz.filament import RendererError
from geom.viz.page import save_html
from geom.viz.probe import Probe, probe
from geom.viz.render import render, save_png
from geom.viz.scene import Lines
from geom.viz.show import show
from geom.viz.strip import render_strip

__all__ = [
    "Camera",
    "Lines",
    "Probe",
    "RendererError",
    "View",
    "probe",
    "render",
    "render_strip",
    "save_html",
    "save_png",
    "show",
]
