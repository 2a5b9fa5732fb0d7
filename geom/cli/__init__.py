"""The command `geom`: files in, files out."""

from geom.cli.main import main

__all__ = ["main"]
