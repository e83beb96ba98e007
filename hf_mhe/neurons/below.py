"""The groups of one component of a pipeline, under the component's name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hf_mhe.neurons.coverage import Coverage
from hf_mhe.neurons.group import Get, NeuronGroup, Source, Stored


@dataclass(frozen=True)
class _GetBelow:
    """`get` for a component's own names. Equal ones compare equal: a conversion that groups share is made once."""

    get: Get
    prefix: str

    def __call__(self, name: str) -> Tensor:
        return self.get(f"{self.prefix}.{name}")


@dataclass(frozen=True)
class _StoredBelow:
    """A tensor of a component, read by its name in the whole."""

    stored: Stored
    prefix: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}.{name}" for name in self.stored.names)

    def read(self, get: Get) -> Tensor:
        return self.stored.read(_GetBelow(get, self.prefix))


def below(prefix: str, found: Coverage) -> Coverage:
    """The coverage of a checkpoint that is one component of a larger one, every name with `prefix.` before it."""
    return Coverage(
        [_group_below(prefix, group) for group in found.groups],
        {f"{prefix}.{name}": reason for name, reason in found.skipped.items()},
        f"{prefix}: {found.note}" if found.note else None,
    )


def _group_below(prefix: str, group: NeuronGroup) -> NeuronGroup:
    source = group.source
    return replace(
        group,
        name=f"{prefix}.{group.name}",
        parameters=tuple(f"{prefix}.{name}" for name in group.parameters),
        aliases=tuple(f"{prefix}.{name}" for name in group.aliases),
        module=f"{prefix}.{group.module}".rstrip("."),
        source=_source_below(prefix, source) if source is not None else None,
    )


def _source_below(prefix: str, source: Source) -> Source:
    stored = tuple(_StoredBelow(stored, prefix) for stored in source.stored)
    return replace(source, owner=f"{prefix}.{source.owner}".rstrip("."), stored=stored)
