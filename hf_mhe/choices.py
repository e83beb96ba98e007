"""What may be chosen where several rooms ask: no import, so that the command line can list it at no cost."""

from __future__ import annotations

from typing import Literal

Distance = Literal["euclidean", "angular"]
Space = Literal["full", "half"]
Across = Literal["experts", "heads", "layers"]
