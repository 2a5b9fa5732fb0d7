"""Point clouds as sequences: selective scans and other linear recurrences, and the mixers made of them.

A mixer maps tokens (B, L, C), or several clouds one after the other (N, C) with their offsets: `mixer(x, offsets)`.
"""

from geom.sequence.attention import LinearAttention
from geom.sequence.convolution import causal_convolution
from geom.sequence.linear import additive_gates, delta_rule, linear_attention
from geom.sequence.mamba import Mamba
from geom.sequence.scan import selective_scan

__all__ = [
    "selective_scan",
    "causal_convolution",
    "linear_attention",
    "delta_rule",
    "additive_gates",
    "Mamba",
    "LinearAttention",
]
