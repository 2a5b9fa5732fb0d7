"""`geom view`."""

from pathlib import Path

from tyro.conf import Positional

from geom.cli.outputs import check_outputs, write_outputs
from geom.errors import ShapeError

__all__ = ["view"]


def view(
    files: Positional[tuple[Path, ...]],
    /,
    *,
    picture: Path | None = None,
    html: Path | None = None,
) -> int:
    """Look at point clouds and meshes: in a window, or as a picture or a page where a file for it is given.

    Without a display, the picture goes to geom.png.

    Args:
        files: What to show together (ply, pcd, npz, obj, off, stl, glb ...).
        picture: File for a picture, as PNG; no window then.
        html: File for a page that holds its own viewer; no window then.
    """
    if not files:
        raise ShapeError("view: expected at least one file, got none")
    check_outputs((picture, html), inputs=files)
    from geom import viz
    from geom.io import load

    things = [load(path) for path in files]
    names = [path.stem for path in files]
    if picture is None and html is None:
        saved = viz.show(*things)
        if saved:
            print(f"no display: wrote {saved}")
        return 0
    drawn = viz.render(*things) if picture else None
    if html:
        viz.save_html(html, *things, names=names)
        print(f"wrote {html}")
    if picture and drawn is not None:
        write_outputs({picture: drawn})
    return 0
