"""Groups of a model that are measured while it trains, by whatever engine trains it."""

from __future__ import annotations

import math

import torch
from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.training.binding import in_use, without_apart
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.engines.engine_of import engine_of
from hf_mhe.training.engines.refuse import refuse_model
from hf_mhe.training.logs import energy_record
from hf_mhe.training.objectives.choose import energy_terms
from hf_mhe.training.spread import mean_spread, spreads


class Watch:
    """The groups to measure: those that train, of the hidden and output layers, or all that `include` names.

    Args:
        model: what is trained, on any engine.
        config: says which energy, of which groups, and whether each is named; its weights do not count.

    Raises:
        MHEError: there is nothing to measure, or the model runs on an engine that is not supported.
    """

    def __init__(self, model: nn.Module, config: MHEConfig) -> None:
        refuse_model(model)
        self.model, self.config = unwrap(model), config
        found = neuron_groups(
            self.model,
            include=config.include,
            exclude=config.exclude,
            output=config.output,
            adapters=config.adapters,
        )
        named = config.include is not None
        compete, apart = without_apart(found, config)
        self.groups = [group for group in compete if named or group.role != "embedding"]
        if not self.groups:
            name = type(self.model).__name__
            raise MHEError(
                f"nothing to measure in {name}: of its {len(found)} neuron groups {len(found) - len(apart)} have "
                "neurons that compete, all of them embeddings: name what to measure, include=..."
                if found
                else f"nothing to measure in {name}: it has no neuron groups"
            )

    def record(self) -> dict[str, float]:
        """The names of the penalty's log, and values at the current weights; empty while none of the groups trains.

        Every rank has to call it.

        Raises:
            MHEError: an energy is not finite, or a layer became something else than it was.
        """
        groups = in_use(self.groups)
        if not groups:
            return {}
        engine = engine_of(self.model, groups)
        spread = spreads(engine, groups)
        with torch.no_grad():
            energies = engine.evaluate(energy_terms(self.config, groups)).energies.double().tolist()
        record = {
            "mhe_spread": mean_spread(spread),
            "mhe_equivalent_dimension": _mean_dimension(groups, spread),
            **energy_record(list(zip(groups, energies, strict=True)), self.config),
        }
        if self.config.log_groups:
            record.update({f"mhe_spread/{name}": value for name, value in spread.items()})
        return record


def _mean_dimension(groups: list[NeuronGroup], spread: dict[str, float]) -> float:
    """The harmonic mean of the groups' equivalent dimensions: as for the spread, crowding is what adds up."""
    crowded = math.fsum(1 / (spread[group.name] * group.d) for group in groups)
    return len(groups) / crowded if crowded > 0 else math.inf
