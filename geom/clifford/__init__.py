"""Geometric algebra: products of multivectors, embeddings of geometry, and networks of attention on both.

Public multivectors are plain tensors (..., C, blades), blades grade by grade. `GATr` and its layers work on clouds of
any kind in `PGA`; `PointAttention` and `PointNetwork` on small clouds of points, over pairs, triples and more of them.
"""

from geom.clifford import conformal, embedding
from geom.clifford.algebra import CGA, EGA, PGA, STA, Algebra
from geom.clifford.attention import (
    AttentionPlan,
    CrossAttention,
    SelfAttention,
    geometric_attention,
    join_attention,
)
from geom.clifford.bilinear import GeometricBilinear, GeoMLP
from geom.clifford.bodies import Bodies, BodyNetwork, draw_planets, move_bodies
from geom.clifford.gates import GatedNonlinearity, GradeDropout, gate_by_scalar
from geom.clifford.gatr import AxialGATr, GATr, GATrBlock, GATrPlan
from geom.clifford.linear import EquiLinear
from geom.clifford.linear_map import equivariant_linear
from geom.clifford.momentum_norm import MomentumLayerNorm, MomentumNorm
from geom.clifford.norm import EquiLayerNorm
from geom.clifford.official import load_official
from geom.clifford.point_attention import PointAttention, perceptron
from geom.clifford.point_network import PointNetwork, PointPotential, pair_values
from geom.clifford.point_products import TupleProducts
from geom.clifford.reference import join_reference
from geom.clifford.serialized import SerializedGATr
from geom.clifford.slim import SlimGATr, from_slim, to_slim

__all__ = [
    "Algebra",
    "PGA",
    "EGA",
    "CGA",
    "STA",
    "embedding",
    "conformal",
    "equivariant_linear",
    "EquiLinear",
    "EquiLayerNorm",
    "gate_by_scalar",
    "GatedNonlinearity",
    "GradeDropout",
    "GeometricBilinear",
    "GeoMLP",
    "AttentionPlan",
    "geometric_attention",
    "join_attention",
    "SelfAttention",
    "CrossAttention",
    "GATrPlan",
    "GATrBlock",
    "GATr",
    "AxialGATr",
    "SerializedGATr",
    "SlimGATr",
    "to_slim",
    "from_slim",
    "join_reference",
    "load_official",
    "Bodies",
    "draw_planets",
    "move_bodies",
    "BodyNetwork",
    "TupleProducts",
    "PointAttention",
    "perceptron",
    "PointNetwork",
    "PointPotential",
    "pair_values",
    "MomentumNorm",
    "MomentumLayerNorm",
]
