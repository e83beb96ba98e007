"""What the matrix finds for one model type."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_mhe.neurons import coverage
from tests.neurons.matrix.build import NotBuiltError, build
from tests.neurons.matrix.heads import has_labels, head_faults
from tests.neurons.matrix.oracle import faults
from tests.neurons.matrix.stored import checkpoint_faults, is_published
from tests.neurons.matrix.types import base_classes, head_classes


@dataclass
class Row:
    """One line of the table; plain values, which pytest's workers can send.

    `groups` and `skipped` are those of the first class that was built: groups by role, parameters by reason.
    `missing` says of each class that was not built why not.
    """

    model_type: str
    built: list[str] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def row_of(model_type: str, most_classes: int | None = None) -> Row:
    """Build the classes of a model type, without a head and with each, and check the groups of each."""
    row = Row(model_type)
    try:
        config_class = CONFIG_MAPPING[model_type]
    except ImportError as error:  # a config that needs a library of its own
        row.missing["config"] = str(error).strip().splitlines()[0]
        return row
    classes = {**dict.fromkeys(base_classes(config_class), ""), **head_classes(config_class)}
    for cls, task in itertools.islice(classes.items(), most_classes):
        try:
            model = build(cls, config_class)
        except NotBuiltError as error:
            row.missing[cls.__name__] = str(error)
            continue
        found = coverage(model)
        said = [*faults(model, found)]
        if is_published(cls, config_class):
            said += checkpoint_faults(model, found)
        if has_labels(task):
            said += head_faults(cls, config_class)
        if not row.built:
            said += [f"by head: {fault}" for fault in faults(model, coverage(model, by_head=True))]
            row.groups = dict(Counter(group.role for group in found.groups))
            row.kinds = sorted({group.kind for group in found.groups})
            row.skipped = dict(Counter(re.sub(r"\d+", "#", reason) for reason in found.skipped.values()))
        row.built.append(cls.__name__)
        row.faults += [f"{cls.__name__}: {fault}" for fault in said]
    if not classes:
        row.missing["model"] = "transformers has no model class that takes the config: it is a part of others"
    return row
