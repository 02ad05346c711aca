"""Freeze log Z: the wall between calibration and policy learning.

Reads ``4_partition``, writes ``5_anchor``: the estimates (``anchor.parquet``) and a manifest with the
fingerprint of everything they depend on. Left of here nothing knows the policy; right of here
nothing can change log Z. Formula: ``log Z = beta r_min + log1p(expm1(beta (r_max - r_min)) q)``.
"""

from disa.anchor.anchor import Anchor

__all__ = ["Anchor"]
