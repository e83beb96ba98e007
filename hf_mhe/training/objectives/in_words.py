"""What a config minimizes, in words for people who read it later."""

from __future__ import annotations

from typing import Any

from hf_mhe.training.config import MHEConfig
from hf_mhe.training.objectives.family_members import ENERGY_SETTINGS, MEMBERS, settings_in_use


def title(config: MHEConfig) -> str:
    """The objective as the field calls it."""
    return "mean energy" if config.objective == "energy" else MEMBERS[config.objective].title


def source(config: MHEConfig) -> str:
    """The arXiv id of the objective's paper."""
    return "1805.09298" if config.objective == "energy" else MEMBERS[config.objective].source


def of_role(config: MHEConfig, role: str) -> str:
    """The objective of the groups of one role, with those settings that it has a use for."""
    potential = config.potential(role)
    if config.objective == "energy":
        return potential.describe()
    settings = MEMBERS[config.objective].settings
    if "s" in settings:
        return f"{title(config)}, {potential.describe()}"
    words = [title(config)]
    words += [potential.distance] if "distance" in settings else []
    words += [f"{potential.space} space"] if "space" in settings else []
    return ", ".join(words)


def in_use(config: MHEConfig) -> dict[str, Any]:
    """The fields of the config, without those that its objective has no use for, and all options of the objective."""
    values = config.to_dict()
    if config.objective == "energy":
        return values
    useful = settings_in_use(config.objective, across=config.weight_across > 0)
    useless = [name for name in ENERGY_SETTINGS if name not in useful]
    if "s" not in useful:
        useless.append("part_copies")
    kept = {name: value for name, value in values.items() if name not in useless}
    return {**kept, "objective_options": config.options or None}
