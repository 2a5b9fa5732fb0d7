"""Point clouds as sequences: selective scans and other linear recurrences, and the mixers made of them.

A mixer maps tokens (B, L, C), or several clouds one after the other (N, C) with their offsets: `mixer(x, offsets)`.
"""

from geom.sequence.attention import LinearAttention
from geom.sequence.classification import classify, segment
from geom.sequence.convolution import causal_convolution
from geom.sequence.decoders import PointCloudMambaSegmenter
from geom.sequence.linear import additive_gates, delta_rule, linear_attention
from geom.sequence.lion import LION, LIONLayer, LIONPlan, VoxelEncoder
from geom.sequence.mamba import Mamba
from geom.sequence.mamba2 import Mamba2
from geom.sequence.official import load_official
from geom.sequence.order_locality import Locality, locality
from geom.sequence.point_cloud_mamba import PCM, PCM_TINY, PointCloudMamba, PointCloudMambaPlan
from geom.sequence.point_mamba import PointMamba, PointMambaPlan
from geom.sequence.scan import selective_scan
from geom.sequence.serialized import SerializedPlan, SerializedTransformer
from geom.sequence.state_space import state_space_dual

__all__ = [
    "selective_scan",
    "state_space_dual",
    "causal_convolution",
    "linear_attention",
    "delta_rule",
    "additive_gates",
    "Mamba",
    "Mamba2",
    "LinearAttention",
    "Locality",
    "locality",
    "PointCloudMambaPlan",
    "PCM",
    "PCM_TINY",
    "PointCloudMamba",
    "PointCloudMambaSegmenter",
    "load_official",
    "classify",
    "segment",
    "PointMambaPlan",
    "PointMamba",
    "LIONPlan",
    "VoxelEncoder",
    "LIONLayer",
    "LION",
    "SerializedPlan",
    "SerializedTransformer",
]
