"""`Registration`: the pose that carries one cloud onto another, and how sure it is."""

from jaxtyping import Float
from torch import Tensor

from geom.lie import Rigid
from geom.values import Fit, value

__all__ = ["Registration"]


@value
class Registration(Fit[Rigid]):
    """A `Fit[Rigid]` of the pose T_target_source, y = R x + t from source into target; all in float64.

    Fields besides `value`, `cost`, `covariance`, `converged` and `iterations`: `information` (6, 6), the inverse of
    `covariance`, both of the twist (v, omega) of a right perturbation T exp(delta), metres and radians; `rmse` (),
    metres, over the matched points; `overlap` (), the share of source points matched; `degenerate_directions` (k, 6),
    orthonormal twists that the data do not hold (k = 0 where all are held); and the settings used: `method`,
    `voxel_size` and `max_distance`, metres.
    """

    covariance: Float[Tensor, "6 6"]  # always there, unlike a Fit's
    information: Float[Tensor, "6 6"]
    rmse: Float[Tensor, ""]
    overlap: Float[Tensor, ""]
    degenerate_directions: Float[Tensor, "k 6"]
    method: str
    voxel_size: float
    max_distance: float

    @property
    def T_target_source(self) -> Float[Tensor, "4 4"]:
        """The pose as a homogeneous matrix (4, 4)."""
        return self.value.to_matrix()
