"""Penalties that stand in more than one experiment."""

from __future__ import annotations

from typing import Any

# Softening is always given, so that results do not depend on the library's default.
MHE_FULL: dict[str, Any] = {"name": "mhe", "s": 2.0, "space": "full", "softening": 0.5, "output_weight": 0.0}
MHE_HALF: dict[str, Any] = {**MHE_FULL, "space": "half"}
# On the class vectors alone; an output group is always full space.
CLASS_VECTORS: dict[str, Any] = {"name": "mhe", "s": 2.0, "softening": 0.1, "hidden_weight": 0.0}
SOFT_ORTHOGONALITY: dict[str, Any] = {"name": "soft_orthogonality"}
SRIP: dict[str, Any] = {"name": "srip"}
MINIMAL_ANGLE: dict[str, Any] = {"name": "minimal_angle"}
# The authors' 40 dimensions, and 5 projections in place of their 20, which would take four times as long.
COMHE: dict[str, Any] = {"name": "comhe_random", "s": 2.0, "softening": 0.5, "dim": 40, "projections": 5}
