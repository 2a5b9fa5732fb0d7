"""pytorch3d's names with its conventions, on the mathematics of `geom`: no build, exact near 0 and pi.

`from pytorch3d.transforms import ...` becomes `from geom.compat.pytorch3d.transforms import ...`, and so for `ops`
and `loss`.
Arguments, defaults, shapes and orders are pytorch3d's: quaternions (w, x, y, z), rotation matrices for column vectors,
`Transform3d` and the alignments for row vectors, 6D as two rows, padded batches. Where pytorch3d raises a ValueError,
so does this (`geom.errors.ShapeError` is one). Batches may have any shape, also where pytorch3d wants (N, ...).
"""

from geom.compat.pytorch3d import loss, ops, transforms

__all__ = ["loss", "ops", "transforms"]
