"""Skinning: rigs posed, surfaces deformed by bones, weights bound, motion solved back into bones and bodies."""

from geom.io.animation import Animation, Channel
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Pose, Primitive, Rig, Skin, make_rig
from geom.skinning.biharmonic import BiharmonicWeights, biharmonic_weights
from geom.skinning.binding import bind
from geom.skinning.body import BodyModel, BodyState, PosedBody, make_body, synthetic_human
from geom.skinning.body_fit import fit_body
from geom.skinning.body_learn import fit_corrective, learn_body, unpose
from geom.skinning.compression import WeightCode, fit_weight_code
from geom.skinning.corrective import Corrective, make_corrective
from geom.skinning.decomposition import Decomposition, decompose_skinning, refine_skinning, solve_skinning
from geom.skinning.diffusion import heat_weights
from geom.skinning.dual_quaternion import dqs, dqs_rigid
from geom.skinning.hybrid import graph_weights, hybrid, hybrid_blend
from geom.skinning.linear import lbs, skin_normals
from geom.skinning.motion_bases import blend_bases, motion_bases
from geom.skinning.parts import Parts, discover_parts
from geom.skinning.pose import bake, deform
from geom.skinning.pruning import PrunedWeights, densify_weights, prune_weights
from geom.skinning.retarget import retarget
from geom.skinning.segments import HandleConditions, cage_conditions, handle_conditions
from geom.skinning.skeleton import Skeleton, load_skeleton, rig_skeleton
from geom.skinning.skeleton_graph import skeleton_graph
from geom.skinning.skeletonization import skeletonize
from geom.skinning.smoothing import DeltaMush
from geom.skinning.smpl import SmplModel, load_smpl
from geom.skinning.transfer import TransferredWeights, transfer_weights
from geom.skinning.voxel_binding import voxel_weights

__all__ = [
    "Rig",
    "Pose",
    "Skin",
    "Primitive",
    "Animation",
    "Channel",
    "make_rig",
    "load_rig",
    "save_rig",
    "deform",
    "bake",
    "retarget",
    "lbs",
    "dqs",
    "dqs_rigid",
    "hybrid",
    "hybrid_blend",
    "graph_weights",
    "motion_bases",
    "blend_bases",
    "DeltaMush",
    "skin_normals",
    "Skeleton",
    "load_skeleton",
    "rig_skeleton",
    "bind",
    "BiharmonicWeights",
    "biharmonic_weights",
    "HandleConditions",
    "handle_conditions",
    "cage_conditions",
    "heat_weights",
    "voxel_weights",
    "TransferredWeights",
    "transfer_weights",
    "PrunedWeights",
    "prune_weights",
    "densify_weights",
    "WeightCode",
    "fit_weight_code",
    "Decomposition",
    "solve_skinning",
    "decompose_skinning",
    "refine_skinning",
    "Parts",
    "discover_parts",
    "BodyModel",
    "BodyState",
    "PosedBody",
    "make_body",
    "synthetic_human",
    "fit_body",
    "learn_body",
    "unpose",
    "fit_corrective",
    "Corrective",
    "make_corrective",
    "SmplModel",
    "load_smpl",
    "skeletonize",
    "skeleton_graph",
]
