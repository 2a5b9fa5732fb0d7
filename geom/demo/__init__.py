"""The tour behind `geom demo`: the main jobs on real input, with pictures, numbers and a page to read."""

from geom.demo.tour import Chapter, Result, data_folder, run, versions

__all__ = ["Chapter", "Result", "data_folder", "run", "versions"]
