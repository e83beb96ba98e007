"""EnergyLoss: the energy of a model's outputs, as a term of a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_mhe.choices import Distance, Space
from hf_mhe.energy import Potential
from hf_mhe.energy.autograd.selected import selected_energy
from hf_mhe.errors import MHEError
from hf_mhe.training.engines.collectives import is_distributed
from hf_mhe.training.outputs.all_ranks import energy_of_all_ranks
from hf_mhe.training.outputs.as_rows import as_rows
from hf_mhe.training.softening import AUTO, CLOSEST

# Note [Copies among outputs]
# A batch has duplicates, paraphrases, and in a collapsed encoder nothing else. So the energy of outputs is bounded by
# default, as that of neurons is: exact where no pair is closer than a cosine of 0.95, by its tangent beyond. There the
# pull is as strong as ever, so that a collapsed encoder is pulled apart; and pairs that coincide have none, for they
# are the same text twice, which no encoder can tell apart. Rejected: to push what coincides in directions of its own,
# as among neurons: copies there are separate parameters, and here the push would depend on a row's place in the batch
# and teach the encoder that. Plummer softening, whose pull fades the closer a pair is, and which changes every energy.
# An error for a batch with fewer than two rows to compare: the last batch of an epoch may have one, a rank none.


class EnergyLoss(nn.Module):
    """Mean hyperspherical energy of a batch of embeddings: low where their directions spread over the sphere.

    Add it to a loss, times a weight::

        energy = EnergyLoss()
        loss = task_loss + 0.1 * energy(embeddings)

    Exact over all pairs, in `O(n d)` memory. Where `torch.distributed` is initialized, the embeddings of all ranks are
    gathered, of batches of different lengths too, so every rank has to call it, with `(0, d)` where it has none. Each
    returns the energy of the whole batch, and under DDP and FSDP, which average gradients over the ranks, each
    parameter gets the gradient that one process with the whole batch would have. For that the gradient is multiplied
    by the number of ranks: a loop that sums gradients has to divide this loss by it, and one that does not reduce
    them takes `gather=False`; see `hf_mhe.training.outputs.all_ranks`.

    A micro-batch of gradient accumulation is a batch of its own: pairs across micro-batches do not count.

    Args:
        s: exponent of the energy, any finite number >= 0.
        distance: `"euclidean"` (chord) or `"angular"` (arc).
        space: `"full"`, or `"half"` to count every embedding together with its mirror image.
        softening: what bounds the energy of embeddings that nearly coincide. `"auto"`: it is exact where no two are
            closer than a cosine of 0.95 (in half space, of -0.95 too), and closer pairs count by its tangent there.
            0: it is exact everywhere, and infinite where two coincide. Above 0: Plummer softening for all pairs.
        gather: whether the embeddings of all ranks are one batch; or the process group whose ranks' are, as the data
            parallel dimension of a mesh has (`mesh["dp"].get_group()`) where other ranks have the same batch. With
            False each rank has the energy of its own batch.

    Raises:
        MHEError: an option is unknown, or a number is negative or not finite.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, eq. (1), of outputs.
    """

    def __init__(
        self,
        s: float = 2.0,
        *,
        distance: Distance = "euclidean",
        space: Space = "full",
        softening: float | str = AUTO,
        gather: bool | torch.distributed.ProcessGroup = True,
    ) -> None:
        super().__init__()
        if isinstance(softening, str):
            if softening != AUTO:
                raise MHEError(f"softening must be {AUTO!r} or a finite number >= 0; got {softening!r}")
            self.potential = Potential(s, distance, space, closest=CLOSEST)
        else:
            self.potential = Potential(s, distance, space, softening)
        if not isinstance(gather, (bool, torch.distributed.ProcessGroup)):
            raise MHEError(f"gather must be True, False or a process group; got {gather!r}")
        self.softening, self.gather = softening, gather

    def forward(self, embeddings: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The mean energy of the embeddings.

        Args:
            embeddings: `(n, d)`, or `(batch, sequence, d)` with labels and mask `(batch, sequence)`; float16,
                bfloat16, float32 or float64. Their lengths do not count; rows of zeros take no part.
            labels: `(n,)` integers: only pairs of different classes count. Rows labelled -100 take no part. In half
                space a mirror image is of its embedding's class.
            mask: `(n,)` bool, or integers as an attention mask has: rows where it is 0 take no part.

        Returns:
            0-dim tensor; float64 for float64 embeddings, float32 otherwise. 0, with a gradient of zeros, where no pair
            is left to count.

        Raises:
            MHEError: a tensor has the wrong shape, dtype or device, an embedding is not finite, or ranks do not fit
                together; what one rank refuses, all ranks do.
        """
        if self.gather and is_distributed():
            group = None if isinstance(self.gather, bool) else self.gather
            return energy_of_all_ranks(embeddings, labels, mask, self.potential, group)
        rows, classes, selected = as_rows(embeddings, labels, mask)
        return selected_energy(rows, self.potential, classes, selected)

    def extra_repr(self) -> str:
        """As `print` shows it."""
        return f"{self.potential.describe()}, softening={self.softening}, gather={self.gather}"
