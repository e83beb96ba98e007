"""A budget: how much of the penalty each optimizer step computes, so that it costs a given share of the step.

Note [What is counted]
Floating-point operations, of the penalty and of the training step alike: they are known before anything is computed,
are the same on every rank and at every resumption, and do not depend on what else the machine does. Rejected: timing
the steps, which would make the training irreproducible. On a CPU an operation of the walk took as long as the average
one of a training step, whose own products are far from the processor's rate too, and those of small groups, which a
budget draws more often, 1.4 times as long (MiniLM, 32 x 128 tokens, 2 threads): `_WALK` is counted for it.

Note [What is computed]
Everything where it fits. Otherwise each step draws some of the groups (`rotating_share`), whose energies count 1 / p
times, p the probability of being drawn. A group that would exceed a rank's allowance by itself is computed, when it is
drawn, on a sample of its neurons against all (`sampled_energy`). Both are unbiased, so over the draws the expectation
of the penalty and of its gradient is that of the exact one. A draw is a function of the seed, the step and the groups
alone: all ranks come to the same one, and so does a resumed training.
"""

from __future__ import annotations

import functools
import math
import random
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mhe.energy.estimators.rotating import inclusion_probabilities, rotating_share
from hf_mhe.energy.estimators.sampled import sampled_operations
from hf_mhe.errors import MHEError
from hf_mhe.training.engines.ddp import is_distributed
from hf_mhe.training.engines.plan import Work, make_plan, operations, operations_by_rows, operations_of
from hf_mhe.training.mean_energy import Sample
from hf_mhe.training.schedule import check_integer

_WALK = 1.5
_DRAWS = 64  # over which the busiest rank's operations are averaged


class Candidate(NamedTuple):
    """A group as the budget sees it: n neurons in d dimensions, and its mean energy's weight in the penalty.

    `whole` says that all ranks walk it together, all of it. Where its weight is sharded, `rows` are the neurons of the
    rank that holds most, if every rank could walk its own, and `size` are the weight's bytes.
    """

    n: int
    d: int
    weight: float
    whole: bool = False
    rows: int | None = None
    size: int = 0

    def work(self, sample: int | None, ranks: int) -> Work:
        """The group's walk, of all of it or of a sample of so many neurons."""
        if sample is not None:
            return Work(sampled_operations(sample, self.n, self.d), None, self.size)
        rows = -(-self.n // ranks) if self.whole else self.rows
        by_rows = None if rows is None else operations_by_rows(rows, self.n, self.d)
        return Work(operations(self.n, self.d), by_rows, self.size)


class Drawn(NamedTuple):
    """A group to compute at a step: its place, how often it counts, and the sample of its neurons, if not all."""

    place: int
    factor: float
    sample: Sample | None


@dataclass(frozen=True)
class Allotment:
    """How the penalty is kept within an allowance.

    Attributes:
        groups: what the penalty is a sum over.
        rows: for each group the number of neurons that a sample of it has, None where it is computed exactly.
        mean: the operations of a step, on average, on all ranks together.
        ranks: how many divide the work.
    """

    groups: tuple[Candidate, ...]
    rows: tuple[int | None, ...]
    mean: float
    ranks: int

    @functools.cached_property
    def works(self) -> tuple[Work, ...]:
        """The walk of each group, when it is drawn."""
        return tuple(group.work(rows, self.ranks) for group, rows in zip(self.groups, self.rows, strict=True))

    @property
    def costs(self) -> list[int]:
        """The operations of each group, when it is drawn."""
        return [work.whole for work in self.works]

    @property
    def exact(self) -> int:
        """The operations of the exact penalty."""
        return sum(operations(group.n, group.d) for group in self.groups)

    @property
    def is_exact(self) -> bool:
        """Whether every step computes everything."""
        return self.mean >= self.exact

    def probabilities(self) -> list[float]:
        """With which each group is drawn."""
        return inclusion_probabilities(self.costs, self.mean, [group.weight for group in self.groups])

    def draw(self, step: int, seed: int) -> list[Drawn]:
        """What is computed at an optimizer step, in ascending order; nothing at some steps of a very small budget."""
        chosen = rotating_share(self.costs, self.mean, step, benefits=[g.weight for g in self.groups], seed=seed)
        return [Drawn(place, factor, self._sample(place, step, seed)) for place, factor in chosen.items()]

    def _sample(self, place: int, step: int, seed: int) -> Sample | None:
        rows = self.rows[place]
        # A string is hashed by SHA-512, alike in every process and version of Python.
        return None if rows is None else Sample(rows, random.Random(f"{seed}/{step}/{place}").getrandbits(63))

    def busiest(self, places: Sequence[int]) -> int:
        """The operations of the rank that has most of them, where these groups are computed."""
        together = sum(self.works[place].by_rows or 0 for place in places if self.groups[place].whole)
        divided = tuple(self.works[place] for place in places if not self.groups[place].whole)
        return together + max(operations_of(make_plan(divided, self.ranks), divided, self.ranks))


@functools.lru_cache(maxsize=16)
def allot(groups: tuple[Candidate, ...], allowance: float, ranks: int) -> Allotment:
    """The allotment with which the busiest of `ranks` has `allowance` operations a step, or fewer, on average."""
    allowed = allowance / _WALK
    everything = Allotment(groups, (None,) * len(groups), sum(operations(g.n, g.d) for g in groups), ranks)
    if everything.busiest(range(len(groups))) <= allowed:
        return everything
    alone = [everything.busiest([place]) for place in range(len(groups))]
    rows = [None if g.whole or cost <= allowed else _rows(g, allowed) for g, cost in zip(groups, alone, strict=True)]
    made = Allotment(groups, tuple(rows), math.inf, ranks)
    made = replace(made, mean=min(allowed * ranks, sum(made.costs)))
    # Few groups a step cannot be divided evenly: as many less that the busiest rank's share comes to the allowance.
    for _ in range(8):
        busiest = _busiest(made)
        if busiest <= allowed * 1.001:
            break
        made = replace(made, mean=made.mean * allowed / busiest)
    return made


def _busiest(allotment: Allotment) -> float:
    """The mean over the steps of the operations of the rank that has most of them."""
    if allotment.ranks == 1:
        return math.fsum(p * cost for p, cost in zip(allotment.probabilities(), allotment.costs, strict=True))
    draws = ([each.place for each in allotment.draw(step, seed=0)] for step in range(_DRAWS))
    return sum(allotment.busiest(places) for places in draws) / _DRAWS


def _rows(group: Candidate, allowed: float) -> int:
    """The size of the largest sample within the allowance, 1 at least."""
    low, high = 1, group.n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sampled_operations(middle, group.n, group.d) <= allowed else (low, middle)
    return low


def describe(allotment: Allotment, budget: float, step_operations: float, ranks: int) -> str:
    """What was chosen, in one line."""
    count, sampled = len(allotment.groups), sum(rows is not None for rows in allotment.rows)
    on_ranks = f" on each of {ranks} ranks" if ranks > 1 else ""
    head = f"MHE budget {100 * budget:g} % of {_giga(step_operations)} a step{on_ranks}"
    if allotment.is_exact:
        return f"{head}: the exact penalty fits, {_giga(allotment.exact)}"
    at_a_time = math.fsum(allotment.probabilities())
    samples = f", {sampled} of them by a sample of their neurons" if sampled else ""
    return (
        f"{head}: {allotment.mean / allotment.exact:.2g} of the operations of the exact penalty "
        f"({_giga(allotment.mean)} of {_giga(allotment.exact)}), {at_a_time:.3g} of {count} groups each step{samples}"
    )


class Budget:
    """A share of the training step's operations, and the draws that keep the penalty within it.

    Args:
        share: in (0, 1].
        model: whose training step it is.
        step_operations: floating-point operations of one optimizer step on this process: forward and backward passes
            of all its micro-batches, the same number on every rank. By default the forward passes of the first step
            are counted, and the ranks take their mean.
        seed: of the draws.

    Attributes:
        step_operations: as given, counted or loaded; None until the first step's passes are done.

    Raises:
        MHEError: `step_operations` is not a finite number > 0, or the seed is not an integer >= 0.
    """

    def __init__(self, share: float, model: nn.Module, *, step_operations: float | None, seed: int) -> None:
        if step_operations is not None:
            _check_operations(step_operations)
        check_integer("seed", seed, at_least=0)
        self.share, self.step_operations, self._seed = share, step_operations, seed
        self._model, self._given = model, step_operations
        self._announced = False
        self._supposed = 0.0
        self._forward = self._start() if step_operations is None else None

    def suppose(self, operations: float) -> None:
        """Add a micro-batch's operations, known otherwise, to what is taken where no forward pass can be counted."""
        if self.step_operations is None:
            self._supposed += operations

    def load(self, step_operations: float | None) -> None:
        """Go on with a step that was counted before; with None count anew, unless it was given.

        Raises:
            MHEError: not a finite number > 0.
        """
        if step_operations is not None:
            _check_operations(step_operations)
        self._stop()
        self.step_operations = self._given if step_operations is None else float(step_operations)
        if self.step_operations is None:
            self._supposed, self._forward = 0.0, self._start()

    def end_step(self) -> None:
        """The forward passes of a step are done: the first step whose passes were seen is counted.

        Every rank has to call this, before the step's `draw`, and also at a step without one.
        """
        if self.step_operations is not None or torch.compiler.is_compiling():
            return
        counted = (self._stop() or self._supposed) if self._forward is not None else 0.0
        if is_distributed():
            device = next(self._model.parameters()).device
            total = torch.tensor(counted, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(total)
            counted = float(total) / torch.distributed.get_world_size()
        self.step_operations = counted or None

    def draw(self, groups: Sequence[Candidate], step: int, ranks: int) -> list[Drawn]:
        """What is computed at an optimizer step, by `ranks` that divide it; every rank has to call this.

        Raises:
            MHEError: no forward pass of the model was seen, or this is inside a compiled graph.
        """
        if torch.compiler.is_compiling():
            raise MHEError(
                "budget draws other groups at each step, which a compiled graph cannot hold: call the regularizer "
                "outside of torch.compile"
            )
        if self.step_operations is None:
            raise MHEError(
                f"budget={self.share:g} is a share of the training step's operations, and no forward pass of "
                f"{type(self._model).__name__} could be counted before the first penalty (it was compiled, or its "
                "layers were called one by one): tell them, MHERegularizer(..., step_operations=6 * parameters * "
                "tokens of a step on one process)"
            )
        allotment = allot(tuple(groups), self.share * self.step_operations, ranks)
        if not self._announced:
            self._announced = True
            if not is_distributed() or torch.distributed.get_rank() == 0:
                print(describe(allotment, self.share, self.step_operations, ranks), file=sys.stderr)
        return allotment.draw(step, self._seed)

    def _start(self) -> ForwardOperations:
        forward = ForwardOperations(self._model)
        weakref.finalize(self, forward.remove).atexit = False  # a budget that was never drawn from leaves nothing
        return forward

    def _stop(self) -> float:
        forward, self._forward = self._forward, None
        return 0.0 if forward is None else forward.stop()


def _check_operations(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise MHEError(f"step_operations must be a finite number of operations > 0; got {value!r}")


def _giga(operations: float) -> str:
    return f"{operations / 1e9:.3g} GFLOP"


class ForwardOperations:
    """Counts the operations of a module's forward passes in training, until `stop`.

    The backward pass has as many for the gradients of the activations, and as many again for those of the parameters,
    as far as these are trained.

    Args:
        model: the module; its own hooks are used, so that wrappers around it do not matter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._counted = 0
        self._counters: list[_Counter | None] = []
        self._hooks = (
            model.register_forward_pre_hook(self._begin, prepend=True),
            model.register_forward_hook(self._end, always_call=True),
        )

    def stop(self) -> float:
        """The operations of forward and backward passes so far; 0 if none was seen, as in a compiled graph."""
        self.remove()
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self._model.parameters()]
        trained = sum(size for size, trains in sizes if trains) / max(1, sum(size for size, _ in sizes))
        return self._counted * (2 + trained)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        counts = module.training and torch.is_grad_enabled() and not self._counters
        counter = _Counter() if counts else None
        self._counters.append(counter)
        if counter is not None:
            counter.__enter__()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._counters:
            return
        counter = self._counters.pop()
        if counter is not None:
            counter.__exit__(None, None, None)
            self._counted += counter.operations


class _Counter(TorchDispatchMode):
    """Adds up the operations of matrix products, convolutions and attention, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` counts a DTensor's operation as a whole on every rank, and keeps hooks
    on the modules' backward passes; neither is wanted here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # come again with this rank's part
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.operations += int(formula(*args, **kwargs, out_val=out))
        return out
