"""The adapter's own matrices as neurons, for users who ask for them instead of the effective weight.

Note [The neurons of an adapter]. LoRA adds `B A`, a sum of r terms, one for each row of A (r, in), a direction that
the adapter reads from the layer's input, and the same column of B (out, r), the direction that it writes to the
output. So both matrices have r neurons: the rows of A in input space, the columns of B in output space. Where they
point together the adapter uses less than its rank. Rejected: the rows of B, points in a space of r dimensions that
only its A explains.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from hf_mhe.neurons.kinds.registry import Piece
from hf_mhe.neurons.layout import ROWS, Rows, Take, Then
from hf_mhe.neurons.model.peft_layers import check_state, method_of, own_parameters, state_of
from hf_mhe.neurons.model.weight import AsStored, Weight

_READS = ("lora_A", "lora_embedding_A")
_WRITES = ("lora_B", "lora_embedding_B")
_METHODS = ("lora", "adalora")


def own_matrices(layer: Any) -> Iterator[tuple[Piece, Weight]]:
    """The matrices of the adapters that are active in a layer, each as a piece with its weight."""
    state = state_of(layer)
    if method_of(layer) not in _METHODS or state.disabled or state.merged:
        return
    target = getattr(layer, "parameter_name", "")  # several layers around one module have a target parameter each
    experts = getattr(layer, "num_experts", 1)
    for adapter in state.active:
        for name in own_parameters(layer, adapter):
            container = name.partition(".")[0]
            if container not in (*_READS, *_WRITES):
                continue
            suffix = ".".join(filter(None, (target, container, adapter)))
            weight = Weight((name,), AsStored(name), check=functools.partial(check_state, layer, state))
            layout = ROWS if container in _READS else Rows(neuron_axis=1)
            rank = layer.r[adapter]
            for expert in range(experts):
                # A holds the experts one after the other, B has them in turn.
                take = Take(expert * rank, rank) if container in _READS else Take(expert, 1, rank)
                yield (
                    Piece(
                        name,
                        container,
                        Then(layout, take) if experts > 1 else layout,
                        f"{suffix}.{expert}" if experts > 1 else suffix,
                    ),
                    weight,
                )
