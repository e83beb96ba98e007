"""How much of a model a report has not seen.

Note [What counts as unseen]. The share is of the values of tensors of two or more dimensions: unseen / (unseen +
measured). Measured are the groups that were asked for. Unseen is what was skipped for a reason that leaves open
whether it has neurons (`Unseen` in neurons/reasons.py): a format that is not read, a tensor that the known model does
not take, a weight of the model that the checkpoint does not hold, a parameter whose use is unknown. Not counted are
biases, positions and other tensors that by nature have no neurons, and whatever the patterns of the user leave out.

A weight that is stored under a name that the model does not know is both a tensor without a taker and a weight without
a tensor. So the two sums are not added: the larger counts.

Note [A considerable part] is more than 5%. Below lie what every library leaves behind: the pooler that a task did
not save (0.5% of BERT), a head of pretraining. Above lies every fault that was seen: a format not read is most of a
model, even of a small one in which the embeddings are nine tenths. Rejected: any unseen weight, which would fail
checks of checkpoints that are in order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.patterns import Patterns, asks_for
from hf_mhe.neurons.reasons import Unseen
from hf_mhe.text import listed

CONSIDERABLE = 0.05
"""A report says so of a model of which more than this share was not seen. See Note [A considerable part]."""


def unseen_share(
    chosen: Collection[NeuronGroup],
    skipped: Mapping[str, str],
    stored: Collection[str] | None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> float | None:
    """The share of a model that was not measured and may have neurons; None where a part of unknown size is unread.

    `chosen` are the groups that were asked for, `skipped` the reasons for the rest, `stored` the names of a
    checkpoint's tensors (None of a model in memory). See Note [What counts as unseen].
    """
    reasons = _asked(skipped, include, exclude)
    if any(reason.elements is None for reason in reasons.values()):
        return None
    held = {name: reason for name, reason in reasons.items() if stored is None or name in stored}
    absent = {name: reason for name, reason in reasons.items() if name not in held}
    unseen = max(_elements(held), _elements(absent))
    measured = sum(group.n * group.d for group in chosen)
    return unseen / (unseen + measured) if unseen else 0.0


def is_considerable(share: float | None) -> bool:
    """Whether a share of a model that was not seen is said, and fails a check."""
    return share is None or share > CONSIDERABLE


def described(share: float | None) -> str:
    """The share in words."""
    return "an unknown share of the weights" if share is None else f"{share:.0%} of the weights"


def unseen_note(
    share: float | None, skipped: Mapping[str, str], include: Patterns = None, exclude: Patterns = None
) -> str | None:
    """One sentence on how much was not seen, and why; None where it is no considerable part."""
    if not is_considerable(share):
        return None
    by_reason: dict[str, list[str]] = {}
    for name, reason in _asked(skipped, include, exclude).items():
        by_reason.setdefault(str(reason), []).append(name)
    most = sorted(by_reason.items(), key=lambda entry: -len(entry[1]))[:2]
    why = "; ".join(f"{listed(names, 2)}: {reason}" for reason, names in most)
    return f"{described(share)} could not be measured ({why})"


def _asked(skipped: Mapping[str, str], include: Patterns, exclude: Patterns) -> dict[str, Unseen]:
    unseen = {name: reason for name, reason in skipped.items() if isinstance(reason, Unseen)}
    return {name: reason for name, reason in unseen.items() if asks_for(name, include, exclude)}


def _elements(reasons: Mapping[str, Unseen]) -> int:
    """The values behind some reasons; those of one weight under several names share the reason, and count once."""
    once = {id(reason): reason.elements or 0 for reason in reasons.values()}
    return sum(once.values())
