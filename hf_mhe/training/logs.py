"""What a log record says of the penalty: means over the optimizer steps since the last record.

Note [No transfer until a record is written]
The values of a step stay on their device and are added up there; reading them is a synchronization, and where the work
was divided a reduction over the ranks as well, so both wait until somebody asks for a record.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mhe.energy.reference.score import energy_score
from hf_mhe.neurons import NeuronGroup
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.terms import PenaltyTerms


class PenaltyLog:
    """The evaluations of the penalty since the last record."""

    def __init__(self, config: MHEConfig) -> None:
        self.config = config
        self._groups: list[NeuronGroup] = []
        self._latest: tuple[PenaltyTerms, float] | None = None  # of a step that may have another pass
        self._sum: Tensor | None = None  # of what has not been transferred: the penalty, then each group's energy
        self._steps = 0
        self._times: list[int] = []  # how many of the steps computed each group
        self._ranks = 1  # above 1 while the sum is of this rank's shares
        self._penalties: list[tuple[float, int]] = []  # sum, steps
        self._energies: dict[str, tuple[NeuronGroup, float, int]] = {}  # group, sum, steps

    def count(self, terms: PenaltyTerms, factor: float, *, again: bool = False) -> None:
        """Add the terms of one optimizer step, whose λ the schedule multiplied by `factor`.

        Those of another pass of the step, `again`, take the place of the last ones, unless a record was begun since.
        """
        if again and self._latest is None:
            return
        if not again:
            self._add()
        self._latest = terms._replace(penalty=terms.penalty.detach()), factor

    def _add(self) -> None:
        if self._latest is None:
            return
        (terms, factor), self._latest = self._latest, None
        if [group.name for group in self._groups] != [group.name for group in terms.groups]:
            self._settle()  # layers were frozen or unfrozen, on every rank alike
            self._groups = list(terms.groups)
            self._times = [0] * len(self._groups)
        step = torch.cat([factor * terms.penalty[None].to(terms.energies), terms.energies])
        self._sum = step if self._sum is None else self._sum + step
        self._steps += 1
        for index in range(len(self._groups)) if terms.computed is None else terms.computed:
            self._times[index] += 1
        self._ranks = max(self._ranks, terms.ranks)

    def drain(self) -> dict[str, float]:
        """The record, and a new one begun; empty where no step computed the penalty.

        Where the work is divided every rank has to call this, for the means are taken over them.
        """
        self._add()
        self._settle()
        penalties, self._penalties = self._penalties, []
        energies, self._energies = self._energies, {}
        if not penalties:
            return {}
        means = [(group, total / steps) for group, total, steps in energies.values()]
        record = {
            "mhe_loss": sum(total for total, _ in penalties) / sum(steps for _, steps in penalties),
        }
        record.update(energy_record(means, self.config))
        return record

    def _settle(self) -> None:
        """Transfer what was added up on the device; where the work was divided, the mean over the ranks."""
        if self._sum is None:
            return
        if self._ranks > 1:
            torch.distributed.all_reduce(self._sum)
            self._sum /= self._ranks
        penalty, *energies = self._sum.tolist()
        self._penalties.append((penalty, self._steps))
        for group, energy, times in zip(self._groups, energies, self._times, strict=True):
            _, total, before = self._energies.get(group.name, (group, 0.0, 0))
            if times:
                self._energies[group.name] = (group, total + energy, before + times)
        self._sum, self._steps, self._ranks = None, 0, 1
        self._times = [0] * len(self._groups)


def energy_record(means: Sequence[tuple[NeuronGroup, float]], config: MHEConfig) -> dict[str, float]:
    """What a record says of groups' mean energies: their mean, that of their scores, and if asked for each of them.

    Of another objective its values stand in place of the energies, under its own name and without scores.
    """
    record: dict[str, float] = {}
    if means:
        name = "mhe_mean_energy" if config.objective == "energy" else f"mhe_{config.objective}"
        record[name] = sum(mean for _, mean in means) / len(means)
    scores = [score for group, mean in means if (score := _score(group, mean, config)) is not None]
    if scores:
        record["mhe_score"] = sum(scores) / len(scores)
    if config.log_groups:
        record.update({f"mhe_{config.objective}/{group.name}": mean for group, mean in means})
    return record


def _score(group: NeuronGroup, energy: float, config: MHEConfig) -> float | None:
    potential = config.potential(group.role)
    # What a random draw and the optimum would have is known for exact energies only.
    if potential.softening or config.objective != "energy":
        return None
    return energy_score(energy, group.n, group.d, potential).score
