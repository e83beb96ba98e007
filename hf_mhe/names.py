"""Names that options take in several rooms: no import, so that the command line can list them at no cost."""

from __future__ import annotations

from typing import Literal

Distance = Literal["euclidean", "angular"]
Space = Literal["full", "half"]
