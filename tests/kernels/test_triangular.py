"""Triangular solves of many right-hand sides against SciPy's."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import splu

from geom.kernels.triangular import solve_factored


@pytest.mark.parametrize("width", [1, 7, 8, 20])
def test_solves_as_scipy_does(dtype: torch.dtype, width: int) -> None:
    draw = np.random.default_rng(width)
    half = sparse.random_array((150, 150), density=0.03, rng=draw)
    matrix = sparse.csc_array(half @ half.T + sparse.eye_array(150))
    found = splu(matrix, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    lower = sparse.tril(found.L, -1, format="csc")
    right = draw.standard_normal((150, width))
    starts, rows = torch.from_numpy(lower.indptr.astype(np.int64)), torch.from_numpy(lower.indices.astype(np.int32))
    values, pivots = (torch.from_numpy(x).to(dtype) for x in (lower.data, found.U.diagonal()))
    given = torch.from_numpy(right).to(dtype)
    kept = given.clone()
    x = solve_factored(starts, rows, values, pivots, given)
    error = (x.double() - torch.from_numpy(found.solve(right))).abs().max() / x.abs().max()
    assert error < (1e-13 if dtype == torch.float64 else 1e-5)
    assert torch.equal(given, kept) and x.dtype == dtype
