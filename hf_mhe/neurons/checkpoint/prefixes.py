"""The names of a checkpoint without what a wrapper put before or into them, and its groups put back on its own names.

A state dict that was saved through DistributedDataParallel, `torch.compile`, FSDP, an `AveragedModel` or a trainer's
own module has every name of the model with something before it.

Note [Which prefix]. What torch's own wrappers add is known and goes wherever it stands, unless the model that the
config describes has such a name itself. Any other (`model.` of a Lightning module, `student.`) goes only where a
config gives the names, and the model takes more of them without it. Where two prefixes do equally well (a student and
a teacher), neither is taken: nothing says which one is the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from hf_mhe.neurons.group import Coverage, NeuronGroup
from hf_mhe.neurons.model.unwrap import WRAPPED, clean
from hf_mhe.neurons.source import Get

# Before every name: DataParallel, DistributedDataParallel, an AveragedModel, which counts its updates beside it.
_MODULE = "module."
_COUNTERS = ("n_averaged",)
_OF = {
    "module": "DataParallel, DistributedDataParallel or an averaged model",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
_LONGEST_PREFIX = 4  # components; a trainer's module lies no deeper than a few

T = TypeVar("T")
Takes = Callable[[str], bool]
"""Whether the model that a config describes has a parameter under a name."""


@dataclass(frozen=True)
class Names:
    """`stored`: the name that a tensor goes by here -> its name in the checkpoint. `note`: what was looked through."""

    stored: Mapping[str, str]
    note: str | None

    def __bool__(self) -> bool:
        return self.note is not None

    def seen(self, by_name: Mapping[str, T]) -> dict[str, T]:
        """A mapping by the checkpoint's names, by the names here; those that it lacks are left out."""
        return {name: by_name[stored] for name, stored in self.stored.items() if stored in by_name}

    def reading(self, get: Get) -> Get:
        """`get` by the names here."""
        return (lambda name: get(self.stored.get(name, name))) if self else get

    def restore(self, found: Coverage) -> Coverage:
        """The coverage of the names here, by the checkpoint's own names; the groups keep those of their modules."""
        stored = self.stored
        return replace(
            found,
            groups=[self._restored(group) for group in found.groups],
            skipped={stored.get(name, name): reason for name, reason in found.skipped.items()},
            note="; ".join(filter(None, (self.note, found.note))) or None,
            codes=frozenset(stored.get(name, name) for name in found.codes),
        )

    def _restored(self, group: NeuronGroup) -> NeuronGroup:
        return replace(group, parameters=tuple(self.stored.get(name, name) for name in group.parameters))


def look_through(names: Iterable[str], takes: Takes | None) -> Names:
    """What the tensors of a checkpoint are called without wrappers; `takes` asks a known model, None where none is.

    See Note [Which prefix].
    """
    here = {name: name for name in names}
    known = takes or (lambda name: False)
    removed: list[str] = []
    while (found := _unwrapped(here, known)) is not None:
        here, of = found
        removed += of
    if takes is not None:
        prefix = _prefix(here, takes)
        if prefix:
            here = {name.removeprefix(prefix): stored for name, stored in here.items()}
            removed.append(f"`{prefix}`")
    if not removed:
        return Names(here, None)
    return Names(here, f"the names of the tensors are read without {', '.join(dict.fromkeys(removed))}")


def _unwrapped(here: Mapping[str, str], known: Takes) -> tuple[dict[str, str], list[str]] | None:
    """The names without torch's wrappers, and which these were; None where there is none left."""
    cleaned = {name: short for name in here if (short := clean(name)) != name and not known(name)}
    shorter = {cleaned.get(name, name): stored for name, stored in here.items()}
    if cleaned and len(shorter) == len(here):
        parts = [part for part in WRAPPED if any(part in name.split(".") for name in here)]
        return shorter, [f"`{part}.` ({_OF[part]})" for part in parts]
    counted = [name for name in here if name not in _COUNTERS]
    if counted and all(name.startswith(_MODULE) and name != _MODULE for name in counted):
        shorter = {name.removeprefix(_MODULE): stored for name, stored in here.items()}
        if len(shorter) == len(here) and not any(map(known, here)):
            return shorter, [f"`{_MODULE}` ({_OF['module']})"]
    return None


def _prefix(here: Mapping[str, str], takes: Takes) -> str:
    """The prefix without which the model takes most names, and more than with it; "" where there is none."""
    own = 0
    for name in here:
        own += takes(name)
        if 2 * own >= len(here):
            return ""
    shared: Counter[str] = Counter()
    for name in here:
        parts = name.split(".")[:-1][:_LONGEST_PREFIX]
        shared.update(".".join(parts[:length]) + "." for length in range(1, len(parts) + 1))
    counts = {
        prefix: sum(takes(name.removeprefix(prefix)) for name in here if name.startswith(prefix))
        for prefix, count in shared.items()
        if count > own
    }
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    return best[0] if most > own and len(best) == 1 else ""
