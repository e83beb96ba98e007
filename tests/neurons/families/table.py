"""All families, by name; another one is one entry more."""

from __future__ import annotations

from tests.neurons.families.family import Family
from tests.neurons.families.mixtures import MIXTURES
from tests.neurons.families.other import OTHER
from tests.neurons.families.text import TEXTS

FAMILIES: dict[str, Family] = {**TEXTS, **MIXTURES, **OTHER}
