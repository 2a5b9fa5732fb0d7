"""The command `geom`: files in, files out."""

from geom.cli.entry import main

__all__ = ["main"]
