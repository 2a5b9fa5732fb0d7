"""Assertions for your own code: is it a group, is it equivariant, are its derivatives right? Plain AssertionErrors."""

from geom.testing.equivariance import assert_equivariant
from geom.testing.gradients import assert_gradients
from geom.testing.groups import assert_group_axioms

__all__ = ["assert_equivariant", "assert_gradients", "assert_group_axioms"]
