"""The table of distances, by the name that callers give."""

from __future__ import annotations

from hf_mhe.choices import Distance
from hf_mhe.energy.distances.arc import Arc
from hf_mhe.energy.distances.chord import Chord
from hf_mhe.energy.distances.spherical import SphericalDistance

DISTANCES: dict[Distance, SphericalDistance] = {"euclidean": Chord(), "angular": Arc()}
