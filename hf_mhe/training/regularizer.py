"""MHERegularizer: the neuron groups of a model bound to a config, and the penalty on them."""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mhe.checks import check_integer
from hf_mhe.errors import MHEError
from hf_mhe.neurons import NeuronGroup
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.training.across_terms import Across, draw, inflation
from hf_mhe.training.binding import bind_groups, in_use, trained_as_updated
from hf_mhe.training.budget.budget import Budget
from hf_mhe.training.config import ROLES, MHEConfig
from hf_mhe.training.delivery import Delivery
from hf_mhe.training.diagnosis import GradientRatio, UnsaidAccumulation, is_due
from hf_mhe.training.engines.collectives import is_distributed
from hf_mhe.training.engines.deepspeed.find_engine import refuse_unfound
from hf_mhe.training.engines.engine_of import engine_of
from hf_mhe.training.engines.forward_under_ddp import ForwardUnderDDP
from hf_mhe.training.engines.protocol import Engine
from hf_mhe.training.engines.refuse import refuse_model
from hf_mhe.training.logs import PenaltyLog
from hf_mhe.training.messages import check_loss, check_state, in_eval_mode, no_end, nothing_left
from hf_mhe.training.objectives.choose import energy_terms, exact_terms
from hf_mhe.training.one_line import in_one_line
from hf_mhe.training.spread import SpreadLog
from hf_mhe.training.terms import PenaltyTerms, Term, trained


class MHERegularizer:
    """The penalty `sum over groups of weight(role) * mean energy` of a model, and the hook that adds it to a loss.

    `MHEConfig(objective=...)` puts another member of the family in place of the mean energy.

    Binds the neuron groups once. A group is computed while at least one of its parameters requires a gradient, so
    freezing and unfreezing layers during training is followed, also where none trains at first. Dead neurons (of
    zeros, or shorter than 2^-12 of the longest in their layer) take no part. The model may be given before or after
    `accelerator.prepare`, DDP, `fully_shard` or `parallelize_module`. Where parameters are sharded the ranks divide
    the work, and every rank reports the whole penalty. Parameters that are replaced later are followed; a layer that
    became something else than it was (an adapter, weight norm, pruning, another class or shape) is refused, and needs
    a new regularizer.

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

    A step may have several backward passes (sharpness-aware minimization, a closure, adversarial batches): call it for
    each loss, and the gradient that the optimizer gets has the penalty once (`hf_mhe.training.delivery`). Steps are
    counted for the schedule of the config; after `accelerator.register_for_checkpointing(regularizer)` the count is
    saved and loaded with everything else.

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298, eq. for L.

    Args:
        model: the module to regularize; DDP and `torch.compile` wrappers are looked through.
        config: an `MHEConfig`, a dict of its fields, or None for the defaults.
        divide_work: under DDP, whether each rank computes its share of the groups, which the averaging of gradients
            completes. What a call adds to a rank's loss is then that rank's share times the number of ranks: the mean
            of the loss over the ranks is as undivided. Say False in a loop that reduces gradients in its own way.
        step_operations: with `MHEConfig(budget=...)`, the floating-point operations of one optimizer step on one
            process, forward and backward passes of all its micro-batches; by default the first step's are counted.
        seed: of what a budget and an objective draw at each step.
        total_steps: optimizer steps of the whole training, at whose end a decay arrives at 0: needed where the config
            has one (`schedule="linear"` or `"cosine"`). `math.inf` is a training without end.

    Attributes:
        step: the number of optimizer steps counted so far.
        budget: what keeps the penalty within `MHEConfig(budget=...)`, or None.

    Raises:
        MHEError: the model is not a module, runs on an engine that is not supported, or has nothing to regularize; a
            decay is asked for without `total_steps`; or `step_operations` or `seed` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MHEConfig | Mapping[str, Any] | None = None,
        *,
        divide_work: bool = True,
        total_steps: float | None = None,
        step_operations: float | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise MHEError(f"model must be a torch.nn.Module; got {type(model).__name__}")
        self.config = MHEConfig.of(config)
        refuse_model(model)
        engine_of(model, ())
        self.model = unwrap(model)
        self.divide_work = divide_work
        if total_steps is None and self.config.schedule != "constant":
            raise MHEError(no_end(self.config.schedule))
        self.schedule = self.config.over(math.inf if total_steps is None else total_steps)
        self.step, self._seed = 0, check_integer("seed", seed, at_least=0)
        self._bound: list[NeuronGroup] = []
        self._log = PenaltyLog(self.config)
        self._ratio = GradientRatio()
        self._spreads = SpreadLog()
        self._unsaid = UnsaidAccumulation()
        self._reached: list[NeuronGroup] = []  # the bound ones, and those that stacks are made of
        self.delivery = Delivery(self.model, functools.partial(trained_as_updated, self.model, self._reached))
        self._said: set[str] = set()
        self._forward: ForwardUnderDDP | None = None
        self.budget: Budget | None = None
        self._across = Across(self.model, self.config)
        if self.config.is_off:
            return
        if any(map(self.weight, ROLES)):
            self._bound += bind_groups(self.model, self.config)
        self._reached += [*self._bound, *self._across.groups]
        if not self.groups:
            self._said.add("frozen")  # by bind_groups
        if self.config.budget is not None:
            self.budget = Budget(self.config.budget, self.model, step_operations=step_operations, seed=seed)
        if is_distributed():
            # The hook holds the groups and not the regularizer, and is removed with the regularizer: a new regularizer
            # may replace this one after the model was changed, and these groups no longer exist then.
            self._forward = ForwardUnderDDP(functools.partial(trained, self._reached))
            hook = self.model.register_forward_hook(self._forward)
            weakref.finalize(self, hook.remove).atexit = False

    def __repr__(self) -> str:
        """One line, such as `MHERegularizer(GPT2LMHeadModel: 8 hidden groups x 1; budget 0.02; DTensors)`."""
        return in_one_line(self.model, self._bound, self.config, self.find_engine)

    def weight(self, role: str) -> float:
        """The weight of a group's objective in the penalty, by the group's role."""
        return self.config.weight(role)

    @property
    def groups(self) -> list[NeuronGroup]:
        """The groups that the penalty is computed on now: weight above 0 and something in them that trains."""
        return [group for group in self._bound if group.requires_grad]

    def penalty(self) -> Tensor:
        """The penalty of the current weights: a 0-dim tensor, differentiable with respect to the groups' parameters.

        Raises:
            MHEError: a group's objective is not finite, a parameter is sharded or on the meta device, or a parameter
                changed its shape.
        """
        return self.evaluate().penalty

    def evaluate(self) -> PenaltyTerms:
        """The penalty and, from the same walk, each group's objective in the order of `groups` (shape `(groups,)`).

        Raises:
            MHEError: as `penalty`.
        """
        return self._across.evaluate(self.find_engine(), self._exact(in_use(self._bound)), self._across.terms())

    def find_engine(self) -> Engine:
        """Who holds which part of the parameters now, found once for a step and handed on.

        Raises:
            MHEError: DeepSpeed's engine does something that is not supported.
        """
        return engine_of(self.model, self._reached, self._forward, divide_work=self.divide_work)

    def advance(self, *, again: bool | None = None, engine: Engine | None = None) -> Tensor | None:
        """What the current optimizer step gets of the penalty, and on to the next; None where it gets nothing.

        That is the penalty, or with a budget this step's estimate of it, times what the schedule multiplies it by;
        where gradients are averaged over the ranks, this rank's share of it. Its gradient comes once, however many
        backward passes the step has.

        Args:
            again: whether this is one more pass of the step that was counted last, where `delivery` was asked; else
                each call is a step.
            engine: as `find_engine` gives it, where that was asked already.

        Raises:
            MHEError: as `penalty`.
        """
        engine = self.find_engine() if engine is None else engine
        if again is None:
            again = False
            if not torch.compiler.is_compiling():
                self.delivery.begin(engine.stepper, new=True)
        step = self.step - again
        self._spreads.begin(step)
        self.step = step + 1
        multiplier = self.schedule.multiplier(step)
        if self.budget is not None:
            self.budget.end_step()
        groups, across = (self._left(), self._across.terms()) if multiplier else ([], [])
        terms = self._exact(groups, step)
        exact = [term.factor for term in terms] + [term.factor for term in across]
        if self.budget is not None and exact:
            terms, across = draw(self.budget, engine, terms, across, step)
        if not terms and not across:
            return None
        self._across.begin_step(again=again)
        found = self._across.evaluate(engine, terms, across, due=True)
        self._log.count(found.among(groups), self.schedule.factor(step), again=again)
        penalty = multiplier * found.penalty
        every = self.schedule.every_n_steps
        if is_due(step // every + 1) and not torch.compiler.is_compiling() and engine.fills_grad:
            anew = lambda: multiplier * self._across.evaluate(engine, terms, across).penalty  # noqa: E731
            penalty = self._ratio.watch(penalty, self.model, anew, steps=every * inflation(exact, [*terms, *across]))
        if penalty.requires_grad and not torch.compiler.is_compiling():
            reached = [*(term.group for term in terms), *(group for term in across for group in term.stack.groups)]
            penalty = self.delivery.carry(penalty, trained_as_updated(self.model, reached))
        return penalty

    def logs(self) -> dict[str, float]:
        """What a log record says of the penalty, as means over the optimizer steps since the last call.

        `mhe_spread` is the mean spread of the groups at the current weights, 1 for a random draw and below 1 crowded,
        in the first record of each ten steps. `mhe_loss` is what the penalty adds to the task's, `mhe_mean_energy` and
        `mhe_score` are means over the groups of the mean energy and of its score (not with softening), with
        `MHEConfig(log_groups=True)` each group's are `mhe_energy/<group>` and `mhe_spread/<group>`. Another objective
        is logged in place of the energy, as it is minimized: `mhe_srip` is its mean, `mhe_srip/<group>` each group's;
        `mhe_across_energy/<kind>` is the mean energy of whole modules (`MHEConfig(across=...)`);
        `mhe_gradient_ratio` is the norm of the penalty's gradient over that of the task's
        (`hf_mhe.training.diagnosis`), where it was taken. Only the steps that computed the penalty count, and with
        none the record has none of these. Where λ has a schedule, `mhe_factor` is what the weights were multiplied by
        at the last step.

        Every rank has to call it, because under DDP the work is divided.
        """
        spreads = self._spreads.drain(self.step, self.find_engine, self.groups, each=self.config.log_groups)
        record = {**spreads, **self._log.drain(), **self._across.drain(), **self._ratio.drain()}
        if not self.schedule.is_constant and self.step:
            record["mhe_factor"] = self.schedule.factor(self.step - 1)
        return record

    def state_dict(self) -> dict[str, float]:
        """What a resumed training needs beside the model's weights: the number of optimizer steps.

        With a budget, once it has counted, also a step's operations.
        """
        known = None if self.budget is None else self.budget.step_operations
        return {"step": self.step} if known is None else {"step": self.step, "step_operations": known}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state that `state_dict` gave; what was gathered for a log record is dropped.

        Raises:
            MHEError: the state is not one of a regularizer.
        """
        check_state(state)
        if self.budget is not None:
            self.budget.load(state.get("step_operations"))
        self.step = int(state["step"])
        self._log = PenaltyLog(self.config)
        self.delivery.end()
        self._across.drain()
        self._ratio.drain()  # what it has warned of it does not say again

    def energies(self) -> dict[str, float]:
        """Each group's mean energy at the current weights, by the group's name, whatever the objective; no gradient.

        Raises:
            MHEError: as `penalty`.
        """
        groups = in_use(self._bound)
        if not groups:
            return {}
        with torch.no_grad():
            values = self.find_engine().evaluate(energy_terms(self.config, groups)).energies.tolist()
        return {group.name: value for group, value in zip(groups, values, strict=True)}

    @torch.compiler.disable
    def __call__(self, loss: Tensor, *, sync: bool | None = None, scale: float | None = None) -> Tensor:
        """Add the penalty to a loss when it is due, otherwise return the loss as it is.

        Due is the micro-batch after which the optimizer steps. Both keywords are read from accelerate when an
        `Accelerator` is in use; without one every call is due, and the loss is taken to be what `.backward()` gets.
        For accumulation by hand, call it after the loss was divided and say which micro-batch is the last::

            loss = regularizer(loss / steps, sync=(i + 1) % steps == 0)

        A model in eval mode and a call under `torch.no_grad()` get the loss unchanged; in eval mode a loss that could
        be trained on is warned of once.

        Args:
            loss: 0-dim floating tensor.
            sync: whether an optimizer step follows this micro-batch.
            scale: what the loss is divided by between this call and the gradients; the penalty is multiplied by it.

        Returns:
            0-dim tensor.

        Raises:
            MHEError: the loss is not a 0-dim floating tensor, `scale` is not finite and positive, or as `penalty`;
                where the work is divided under DDP, that comes out of the backward pass, on every rank.
        """
        check_loss(loss, scale)
        if not torch.is_grad_enabled() or self.config.is_off:
            return loss
        if not self.model.training:
            if loss.requires_grad:
                self._warn_once("eval", in_eval_mode(self.model))
            return loss
        engine = engine_of(self.model, ())  # without the groups, which say who computes what and not when
        if engine.stepper is None:
            refuse_unfound(self.model, functools.partial(trained, self._reached))
        moment = engine.micro_batch(sync=sync, scale=scale)
        if not moment.is_due:
            return loss
        engine = self.find_engine()
        again = not self.delivery.begin(engine.stepper)
        penalty = self.advance(again=again, engine=engine)
        if penalty is None:
            return loss
        if engine.stepper is None and sync is None:
            self._unsaid.watch(trained(self._reached), once=again)
        return moment.add(loss, penalty)

    def _left(self) -> list[NeuronGroup]:
        """The groups to compute at the current step; where none is left, a warning once."""
        groups = in_use(self._bound)
        if groups:
            self._said.discard("frozen")
        elif self._bound and "frozen" not in self._said:
            message = nothing_left(self.model, self._bound, self._bound, self.config)
            self._warn_once("frozen", f"from optimizer step {self.step} on: {message}")
        return groups

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(message, UserWarning, stacklevel=4)

    def _exact(self, groups: list[NeuronGroup], step: int | None = None) -> list[Term]:
        return exact_terms(self.config, groups, self.step if step is None else step, self._seed)
