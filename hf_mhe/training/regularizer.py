"""MHERegularizer: the neuron groups of a model bound to a config, and the penalty on them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup, neuron_groups
from hf_mhe.neurons.group import is_dtensor
from hf_mhe.neurons.wrappers import unwrap
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.diagnosis import GradientRatio, is_due
from hf_mhe.training.engines import (
    ForwardUnderDDP,
    Managed,
    Part,
    Sharded,
    averaging_ranks,
    divide,
    divided_energies,
    find_engine,
    is_distributed,
    owners,
    prepare,
    refuse_model,
    refuse_parameter,
    refuse_unfound,
    refuse_without_values,
    sharded_penalty,
    tie,
)
from hf_mhe.training.finite import finite
from hf_mhe.training.logs import PenaltyLog, PenaltyTerms
from hf_mhe.training.mean_energy import mean_energy
from hf_mhe.training.messages import check_loss, not_finite, nothing_left
from hf_mhe.training.schedule import check_integer
from hf_mhe.training.timing import find_moment


class MHERegularizer:
    """The penalty `sum over groups of weight(role) * mean energy` of a model, and the hook that adds it to a loss.

    Binds the neuron groups once. A group is computed while at least one of its parameters requires a gradient, so
    freezing and unfreezing layers during training is followed. Dead (all-zero) neurons have no direction and take no
    part. The model may be given before or after `accelerator.prepare`, DDP, `fully_shard` or `parallelize_module`.
    Where parameters are sharded the ranks divide the work, and every rank reports the whole penalty.

    In a loop with `accelerator.accumulate`, the penalty is added on the micro-batch that synchronizes gradients, and
    multiplied by what `accelerator.backward` divides by, so that it counts once per optimizer step at full weight::

        regularizer = MHERegularizer(model, MHEConfig())
        for batch in dataloader:
            with accelerator.accumulate(model):
                loss = regularizer(model(**batch).loss)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                accelerator.log(regularizer.logs())

    In a compiled step the hook runs as it is, between the compiled graphs, and nothing is compiled again from step to
    step. Where there may be one graph only (`torch.compile(fullgraph=True)`), add `penalty()`, which can be traced.

    It counts the optimizer steps, for the schedule of the config. After
    `accelerator.register_for_checkpointing(regularizer)` the count is saved and loaded with everything else.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298, eq. for L.

    Args:
        model: the module to regularize; DDP and `torch.compile` wrappers are looked through.
        config: an `MHEConfig`, a dict of its fields, or None for the defaults.
        divide_work: under DDP, whether each rank computes its share of the groups, which the averaging of gradients
            completes. What a call adds to a rank's loss is then that rank's share times the number of ranks: the mean
            of the loss over the ranks is as undivided. Say False in a loop that reduces gradients in its own way.
        total_steps: optimizer steps of the whole training, at whose end a decay arrives at 0: needed where the config
            has one (`schedule="linear"` or `"cosine"`). `math.inf` is a training without end.

    Attributes:
        step: the number of optimizer steps counted so far.

    Raises:
        MHEError: the model is not a module, runs on an engine that is not served, or has nothing to regularize; or a
            decay is asked for without `total_steps`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MHEConfig | Mapping[str, Any] | None = None,
        *,
        divide_work: bool = True,
        total_steps: float | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise MHEError(f"model must be a torch.nn.Module; got {type(model).__name__}")
        self.config = MHEConfig.of(config)
        refuse_model(model)
        find_engine(model)
        self.model = unwrap(model)
        self.divide_work = divide_work
        if total_steps is None and self.config.schedule != "constant":
            raise MHEError(
                f"schedule={self.config.schedule!r} decays to 0 at the end of the training, which MHERegularizer does "
                "not know: tell it the number of optimizer steps, MHERegularizer(model, config, total_steps=...)"
            )
        self.schedule = self.config.over(math.inf if total_steps is None else total_steps)
        self.step = 0
        self._log = PenaltyLog(self.config)
        self._ratio = GradientRatio()
        self._warned = False
        self._bound: list[NeuronGroup] = []
        self._forward: ForwardUnderDDP | None = None
        if self.config.is_off:
            return
        found = neuron_groups(
            self.model,
            include=self.config.include,
            exclude=self.config.exclude,
            output=self.config.output,
            adapters=self.config.adapters,
        )
        self._bound = [group for group in found if self.weight(group.role) > 0]
        if not self.groups:
            raise MHEError(nothing_left(self.model, found, self._bound, self.config))
        managed = Managed(self.model)
        for group in self._bound:
            for tensor in group.tensors():
                refuse_parameter(group.name, managed.parameter(tensor))
        if is_distributed():
            self._forward = ForwardUnderDDP(self._tensors)
            self.model.register_forward_hook(self._forward)

    def weight(self, role: str) -> float:
        """The weight of a group's mean energy in the penalty, by the group's role."""
        return self.config.weight(role)

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that the penalty is computed on now: weight above 0 and something in them that trains."""
        return [group for group in self._bound if group.requires_grad]

    def penalty(self) -> Tensor:
        """The penalty of the current weights: a 0-dim tensor, differentiable with respect to the groups' parameters.

        Raises:
            MHEError: a group's energy is not finite, a parameter is sharded or on the meta device, or a parameter
                changed its shape.
        """
        return self.evaluate().penalty

    def evaluate(self) -> PenaltyTerms:
        """The penalty and, from the same walk, each group's mean energy in the order of `groups` (shape `(groups,)`).

        Raises:
            MHEError: as `penalty`.
        """
        groups = self.groups
        self._check_frozen()
        if not groups:
            return PenaltyTerms(torch.zeros(()), torch.zeros(0))
        return PenaltyTerms(*self._evaluate(groups), groups)

    def evaluate_due(self) -> PenaltyTerms:
        """As `evaluate`, for the gradients of the forward pass just done: under DDP, this rank's share of the work.

        Raises:
            MHEError: as `penalty`.
        """
        engine = find_engine(self.model)
        if engine is not None and self.groups:
            groups = self.groups
            prepare(engine, self.model, self._tensors())
            return PenaltyTerms(*self._evaluate(groups, averaging_ranks(engine) if self.divide_work else None), groups)
        part = self._forward.take_part() if self._forward is not None and self.divide_work else Part()
        groups = self.groups
        if part.ranks == 1 or not groups:
            return self.evaluate()
        owners = divide([group.n * group.n * group.d for group in groups], part.ranks)
        mine = [index for index, owner in enumerate(owners) if owner == part.rank]
        tensors = [group.tensors() for group in groups]
        # The ranks' shares are put together: all of one dtype, whichever groups a rank has.
        dtype = reduce(torch.promote_types, (tensor.dtype for each in tensors for tensor in each), torch.float32)
        energies = torch.zeros(len(groups), dtype=dtype, device=tensors[0][0].device)
        penalty = energies.new_zeros(())
        if mine:
            own = part.ranks * self._energies([groups[index] for index in mine]).to(dtype)
            penalty = self._weighted([groups[index] for index in mine], own).to(penalty.device)
            energies[mine] = own.detach().to(energies.device)
        others = [tensor for index, each in enumerate(tensors) if owners[index] != part.rank for tensor in each]
        return PenaltyTerms(tie(penalty, [t for t in others if t.requires_grad]), energies, groups, part.ranks)

    def advance(self) -> Tensor | None:
        """What the optimizer step at hand gets of the penalty, and on to the next; None where it gets nothing.

        That is `evaluate_due`, multiplied by the schedule's share of this step.

        Raises:
            MHEError: as `penalty`.
        """
        step, self.step = self.step, self.step + 1
        share = self.schedule.share(step)
        if share == 0 or not self._something_trains():
            return None
        terms = self.evaluate_due()
        self._log.count(terms, self.schedule.factor(step))
        penalty = share * terms.penalty
        every = self.schedule.every_n_steps
        if is_due(step // every + 1) and not torch.compiler.is_compiling() and find_engine(self.model) is None:
            penalty = self._ratio.watch(penalty, self.model, lambda: share * self.penalty(), steps=every)
        return penalty

    def logs(self) -> dict[str, float]:
        """What a log record says of the penalty, as means over the optimizer steps since the last call.

        `mhe_loss` is what the penalty adds to the objective, `mhe_mean_energy` and `mhe_score` are means over the
        groups of the mean energy and of its score (`hf_mhe.energy.reference.score`; not with softening), with
        `MHEConfig(log_groups=True)` each group's mean energy is `mhe_energy/<group>`; `mhe_gradient_ratio` is the norm
        of the penalty's gradient over that of the task's (`hf_mhe.training.diagnosis`), where it was taken. Only the
        steps that computed the penalty count, and with none the record has none of these. Where λ has a schedule,
        `mhe_factor` is what the weights were multiplied by at the last step.

        Every rank has to call it, because under DDP the work is divided.
        """
        record = {**self._log.drain(), **self._ratio.drain()}
        if not self.schedule.is_constant and self.step:
            record["mhe_factor"] = self.schedule.factor(self.step - 1)
        return record

    def state_dict(self) -> dict[str, int]:
        """What a resumed training needs beside the model's weights: the number of optimizer steps."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state that `state_dict` gave; what was gathered for a log record is dropped.

        Raises:
            MHEError: the state is not one of a regularizer.
        """
        if not isinstance(state, Mapping) or set(state) != {"step"}:
            raise MHEError(f"a regularizer's state is {{'step': number of optimizer steps}}; got {state!r}")
        check_integer("step", state["step"], at_least=0)
        self.step = int(state["step"])
        self._log = PenaltyLog(self.config)
        self._ratio.drain()  # what it has warned of it does not say again

    def energies(self) -> dict[str, float]:
        """Each group's mean energy at the current weights, by the group's name; no gradient.

        Raises:
            MHEError: as `penalty`.
        """
        groups = self.groups
        if not groups:
            return {}
        with torch.no_grad():
            values = self._evaluate(groups)[1].tolist()
        return {group.name: value for group, value in zip(groups, values, strict=True)}

    @torch.compiler.disable
    def __call__(self, loss: Tensor, *, sync: bool | None = None, scale: float | None = None) -> Tensor:
        """Add the penalty to a loss when it is due, otherwise return the loss as it is.

        Due is the micro-batch after which the optimizer steps. Both keywords are read from accelerate when an
        `Accelerator` is in use; without one every call is due, and the loss is taken to be what `.backward()` gets.
        For accumulation by hand, call it after the loss was divided and say which micro-batch is the last::

            loss = regularizer(loss / steps, sync=(i + 1) % steps == 0)

        A model in eval mode and a call under `torch.no_grad()` get the loss unchanged.

        Args:
            loss: 0-dim floating tensor.
            sync: whether an optimizer step follows this micro-batch.
            scale: what the loss is divided by between this call and the gradients; the penalty is multiplied by it.

        Returns:
            0-dim tensor.

        Raises:
            MHEError: the loss is not a 0-dim floating tensor, `scale` is not positive, or as `penalty`.
        """
        check_loss(loss)
        if scale is not None and not scale > 0:
            raise MHEError(f"scale must be a number > 0; got {scale!r}")
        if not self.model.training or not torch.is_grad_enabled() or self.config.is_off:
            return loss
        engine = find_engine(self.model)
        if engine is None:
            refuse_unfound(self._tensors())
        moment = find_moment(engine, sync=sync, scale=scale)
        penalty = self.advance() if moment.sync else None
        return loss if penalty is None else loss + moment.divisor * penalty.to(loss.device)

    def _check_frozen(self) -> None:
        """Groups that froze because another adapter was activated are no groups to go on without."""
        for group in self._bound:
            if not group.requires_grad:
                group.check_in_use()

    def _something_trains(self) -> bool:
        self._check_frozen()
        if self._bound and not self.groups and not self._warned:
            self._warned = True
            message = nothing_left(self.model, self._bound, self._bound, self.config)
            warnings.warn(f"from optimizer step {self.step} on: {message}", UserWarning, stacklevel=4)
        return bool(self.groups)

    def _weighted(self, groups: list[NeuronGroup], energies: Tensor) -> Tensor:
        weights = torch.tensor([self.weight(group.role) for group in groups], dtype=energies.dtype)
        return (weights.to(energies.device) * energies).sum()

    def _evaluate(
        self, groups: list[NeuronGroup], ranks: torch.distributed.ProcessGroup | None = None
    ) -> tuple[Tensor, Tensor]:
        """The penalty of these groups, differentiable, and their mean energies, detached.

        Where DeepSpeed trains, `ranks` divide the work; under ZeRO 3 they do in any case.
        """
        ranks = owners(groups) or ranks
        if ranks is not None:
            energies = self._divided(groups, ranks)
            return self._weighted(groups, energies), energies.detach()
        refuse_without_values(groups)
        managed = Managed(self.model)
        parameters = [tuple(managed.parameter(tensor) for tensor in group.tensors()) for group in groups]
        sharded = [place for place, each in enumerate(parameters) if any(map(is_dtensor, each))]
        if not sharded:
            energies = self._energies(groups)
            return self._weighted(groups, energies), energies.detach()
        terms = [
            Sharded(group, parameters[place], self.config.potential(group.role), self.weight(group.role))
            for place, group in ((place, groups[place]) for place in sharded)
        ]
        penalty, found = sharded_penalty(terms)
        self._check_finite([groups[place] for place in sharded], found)
        energies = found.new_zeros(len(groups))
        energies[sharded] = found
        whole = [place for place in range(len(groups)) if place not in sharded]
        if whole:
            rest = self._energies([groups[place] for place in whole])
            energies[whole] = rest.detach().to(energies)
            penalty = penalty + self._weighted([groups[place] for place in whole], rest).to(penalty.device)
        return penalty, energies

    def _divided(self, groups: list[NeuronGroup], ranks: torch.distributed.ProcessGroup) -> Tensor:
        """The mean energies of groups that DeepSpeed trains, whose neurons the ranks walk together."""
        device = groups[0].tensors()[0].device
        with torch.autocast(device.type, enabled=False):
            potentials = [(group, self.config.potential(group.role)) for group in groups]
            joined = torch.stack(divided_energies(self.model, potentials, ranks))
        self._check_finite(groups, joined.detach())
        return joined

    def _energies(self, groups: list[NeuronGroup]) -> Tensor:
        """The mean energies of groups whose parameters this process holds whole, differentiable."""
        # Autocast would run the walk's products in half precision, where its own treatment of the hard pairs is lost.
        device = groups[0].tensors()[0].device
        with torch.autocast(device.type, enabled=False):
            joined = torch.stack([self._energy(group).to(device) for group in groups])
        if torch.compiler.is_compiling():
            return finite(joined, "\n".join(group.name for group in groups), self.config.softening)
        self._check_finite(groups, joined.detach())
        return joined

    def _energy(self, group: NeuronGroup) -> Tensor:
        for tensor in group.tensors():
            refuse_parameter(group.name, tensor)
        try:
            return mean_energy(group.matrix(), self.config.potential(group.role))
        except MHEError as error:
            raise MHEError(f"neuron group {group.name!r}: {error}") from error

    def _check_finite(self, groups: list[NeuronGroup], energies: Tensor) -> None:
        if not torch.isfinite(energies).all():
            raise MHEError(not_finite([group.name for group in groups], energies.tolist(), self.config.softening))

    def _tensors(self) -> list[Tensor]:
        return [tensor for group in self.groups for tensor in group.tensors() if tensor.requires_grad]
