"""MHETrainer and with_mhe: a transformers Trainer, and any subclass of it, with the penalty.

Note [Where the penalty enters]
Between `compute_loss` and the gradients, Trainer divides the loss by the accumulation steps for some models,
multiplies it by the number of processes for others, takes a mean over devices, and a subclass may do anything else.
Adding the penalty in `compute_loss` would have to undo all of that, and would put it into the logged loss and into
evaluation. So it is added in the one place after all of it and before the gradient scaler: the call of
`accelerator.backward` within `training_step`. What `training_step` returns, and Trainer logs as `loss`, stays the task
loss, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.utils import is_sagemaker_mp_enabled

from hf_mhe.errors import MHEError
from hf_mhe.neurons.model.unwrap import unwrap
from hf_mhe.training.binding import bind_groups
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.engines.protocol import Engine
from hf_mhe.training.engines.refuse import refuse_distributed_type, refuse_parallelism
from hf_mhe.training.regularizer import MHERegularizer

_BUDGET = "MHEBudget"


class MHEMixin(Trainer):
    """What MHE adds to a Trainer class; use `with_mhe`, which puts it in front of the class it extends."""

    def __init__(self, *args: Any, mhe_config: MHEConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.mhe_config = mhe_config
        self._mhe_regularizer: MHERegularizer | None = None
        self._mhe_record: dict[str, float] = {}
        self._mhe_recorded: int | None = None  # the optimizer step whose record that is
        self._mhe_state: object | None = None  # of the training that goes on; Trainer makes a new one for each
        self._mhe_step: int | None = None  # the optimizer step that had a penalty
        model: Any = kwargs.get("model", args[0] if args else None)
        if getattr(model, "is_quantized", False) and not self.mhe_config.is_off:
            bind_groups(unwrap(model), self.mhe_config)  # Trainer would refuse the model first, without naming a layer
        super().__init__(*args, **kwargs)
        self._refuse_engine()
        self.add_callback(StepsHavePenalty(self))
        callbacks = self.callback_handler.callbacks
        callbacks.insert(1, callbacks.pop())  # behind the one that decides whether a step is logged
        if self.model is not None:
            _ = self.mhe_regularizer  # so that a model with nothing to regularize is refused at construction

    @property
    def mhe_config(self) -> MHEConfig:
        """The config of the next training; a dict of its fields may be assigned too.

        Raises:
            MHEError: what is assigned is no config.
        """
        return self._mhe_config

    @mhe_config.setter
    def mhe_config(self, config: MHEConfig | Mapping[str, Any] | None) -> None:
        self._mhe_config = MHEConfig.of(config)

    @property
    def mhe_regularizer(self) -> MHERegularizer:
        """The regularizer, bound to the model that is trained now: `train` makes a new one.

        Raises:
            MHEError: the model has nothing to regularize, or there is none yet.
        """
        if self.model is None:
            raise MHEError(f"{type(self).__name__} has no model to regularize yet: model_init makes it in train()")
        if self._mhe_regularizer is None or self._mhe_regularizer.model is not unwrap(self.model):
            # How long the training is, and where in it we are, is set at each step.
            self._mhe_regularizer = MHERegularizer(
                self.model, self.mhe_config, total_steps=math.inf, seed=self.args.seed
            )
        return self._mhe_regularizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        self._mhe_state = self._mhe_recorded = None
        self._mhe_record = {}
        if self.model_init is None and self.model is not None:
            # The model may have been changed since: an adapter, other embeddings, a parametrization.
            self._bind_anew()
        else:
            self._mhe_regularizer, self._mhe_step = None, None  # bound when the model has been made
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's own, with the penalty added where gradients are synchronized, before an optimizer step.

        Returns:
            0-dim tensor, detached: the task loss of the micro-batch, without the penalty.

        Raises:
            MHEError: the penalty is not finite, the Trainer class does not go through `accelerator.backward`, or the
                gradients hold the penalty of this step in part.
        """
        if self._mhe_state is not self.state:
            if self._mhe_state is not None:
                self._bind_anew()  # the training started over with smaller batches (auto_find_batch_size)
            self._mhe_state = self.state
        self._suppose_operations(inputs)
        if self.mhe_config.is_off or not self.accelerator.gradient_state.sync_gradients:
            return super().training_step(model, inputs, *args, **kwargs)
        with self._penalty_in_backward():
            return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; a record with the training loss also gets what `MHERegularizer.logs` has to say."""
        if "loss" in logs:
            logs.update(self._mhe_record)
            self._mhe_record, self._mhe_recorded = {}, None
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log:  # also by a callback that came after ours, or at the end of an epoch
            self.take_mhe_record()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def take_mhe_record(self) -> None:
        """Measure what the next log record says of the penalty, once a step; see Note [When the record is measured].

        Every rank comes here at the end of a step: what the ranks know of the penalty is put together. `log` is no
        place for it, for a program may call it on one rank.
        """
        if self._mhe_recorded != self.state.global_step:
            self._mhe_recorded = self.state.global_step
            self._mhe_record.update(self.mhe_regularizer.logs())  # of one that a callback kept from being logged

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, with `mhe_config.json` beside the weights, in checkpoints and on the Hub too."""
        # Before the weights: Trainer pushes to the Hub at the end of its own save_model.
        if self.args.should_save:
            self.mhe_config.save_pretrained(output_dir or str(self.args.output_dir))
        super().save_model(output_dir, _internal_call)

    @contextmanager
    def _penalty_in_backward(self) -> Iterator[None]:
        """Add the penalty to the losses that go through `accelerator.backward` within the context, where it is due."""
        backward: Callable[..., None] = self.accelerator.backward
        own = vars(self.accelerator).get("backward")  # another library may have put its own in place
        called = False

        def backward_with_penalty(loss: Tensor, **kwargs: Any) -> None:
            nonlocal called
            called = True
            engine = self.mhe_regularizer.find_engine()
            penalty = self._mhe_penalty(engine)
            if penalty is not None:
                # `accelerator.backward` divides by its own accumulation steps; Trainer sets them to 1, others may
                # not, and says so to DeepSpeed's.
                scale = 1.0 if kwargs.get("scale_wrt_gas") is False else None
                loss = engine.micro_batch(sync=True, scale=scale).add(loss, penalty)
            backward(loss, **kwargs)

        self.accelerator.backward = backward_with_penalty
        try:
            yield
        finally:
            del self.accelerator.backward
            if own is not None:
                self.accelerator.backward = own
        if not called:
            raise MHEError(
                f"{type(self).__name__}.training_step did not call self.accelerator.backward, so the penalty could "
                "not be added: call it there instead of loss.backward()"
            )

    def _mhe_penalty(self, engine: Engine) -> Tensor | None:
        """What the current backward pass gets; by Trainer's own count, with which a resumed training goes on."""
        regularizer, step = self.mhe_regularizer, self.state.global_step
        # A step may have several passes: adversarial batches, weights that are perturbed in between, several losses.
        again = self.is_in_train and self._mhe_step == step
        # Where DeepSpeed trains, `accelerator.backward` steps too: its own count says which passes are of one step.
        stepper = engine.stepper
        regularizer.delivery.begin(stepper, new=None if stepper is not None and again else not again)
        if again and regularizer.delivery.is_done():
            return None
        self._mhe_step = step
        regularizer.step = step + again
        regularizer.schedule = self.mhe_config.over(self.state.max_steps or math.inf)  # 0 where train() was not called
        budget = regularizer.budget
        if budget is None:
            return regularizer.advance(again=again, engine=engine)
        kept: Any = self.state.stateful_callbacks  # a dict, whatever its annotation says
        # Trainer saves this with its own state, and has it back when a training is resumed.
        if budget.step_operations is None and _BUDGET in kept:
            budget.load(kept[_BUDGET]["attributes"]["step_operations"])
        penalty = regularizer.advance(again=again, engine=engine)
        if budget.step_operations is not None:
            kept[_BUDGET] = {"args": {}, "attributes": {"step_operations": budget.step_operations}}
        return penalty

    def _bind_anew(self) -> None:
        """Bind a new regularizer, which has counted and gathered nothing yet."""
        self._mhe_regularizer, self._mhe_step = None, None
        _ = self.mhe_regularizer

    def _suppose_operations(self, inputs: dict[str, Any]) -> None:
        """For a budget in a compiled model: Trainer's estimate for a micro-batch, of tokens (not of pixels)."""
        budget = self.mhe_regularizer.budget
        if budget is not None and getattr(self.model, "main_input_name", "input_ids") == "input_ids":
            budget.suppose(float(self.floating_point_ops(inputs)))

    def _refuse_engine(self) -> None:
        shared = self.accelerator.state
        refuse_distributed_type(str(shared.distributed_type.value), is_fsdp2=shared.is_fsdp2)
        refuse_parallelism(getattr(shared, "parallelism_config", None))
        if self.args.n_gpu > 1:
            raise MHEError(
                f"MHE does not support torch.nn.DataParallel ({self.args.n_gpu} GPUs in one process): start one "
                f"process per GPU (torchrun --nproc_per_node {self.args.n_gpu}) or show it one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        if is_sagemaker_mp_enabled():
            raise MHEError("MHE does not support SageMaker model parallel: train with DDP or in one process")


class StepsHavePenalty(TrainerCallback):
    """Stops a training that has nothing to regularize, or whose loop goes around the place of the penalty."""

    def __init__(self, trainer: MHEMixin) -> None:
        self.trainer = trainer

    @property
    def is_on(self) -> bool:
        """Whether the training has a penalty, and a log of it."""
        return not self.trainer.mhe_config.is_off

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _ = self.trainer.mhe_regularizer  # of a model that `model_init` made for this training

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._mhe_step is None and self.is_on:
            raise MHEError(
                f"{type(self.trainer).__name__} made an optimizer step without its training_step, so the penalty "
                "could not be added: call training_step in its loop, or use hf_mhe.MHERegularizer there, "
                "loss = regularizer(loss)"
            )
        if control.should_log:
            self.trainer.take_mhe_record()


class MHETrainer(MHEMixin, Trainer):
    """`transformers.Trainer` with minimum hyperspherical energy: the same arguments, and `mhe_config`.

    The penalty counts once per optimizer step at its full weight, however the batch is split into micro-batches, in
    however many backward passes, and whatever the model or the Trainer does to scale its loss. Evaluation and
    prediction never see it. The logged `loss` stays the task loss; beside it are logged `mhe_spread`, `mhe_loss` and
    more (see `MHERegularizer.logs`). A schedule of the config follows the optimizer steps of the training, a resumed
    one too. The neuron groups are found when it is made, and again at each `train`, so that the model may be changed
    in between, or made by `model_init`. `mhe_config.json` is saved beside the weights. For another Trainer class see
    `with_mhe`.

    Example::

        trainer = MHETrainer(model, args, train_dataset=dataset, mhe_config=MHEConfig(hidden_weight=0.1))
        trainer.train()

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298.

    Args:
        mhe_config: an `MHEConfig`, a dict of its fields, or None for the defaults.
        *args, **kwargs: as `transformers.Trainer`.

    Attributes:
        mhe_config: the `MHEConfig`. Another one may be assigned before `train`, and in `model_init(trial)`, where a
            search for hyperparameters chooses weights.
        mhe_regularizer: the `MHERegularizer` bound to the model.

    Raises:
        MHEError: the config is not valid, the engine is not supported, or the model has nothing to regularize.
    """


def with_mhe(trainer_class: type[Trainer]) -> type[Trainer]:
    """The Trainer class `MHE<name>`: `trainer_class` with the keyword `mhe_config`, as `MHETrainer` has it.

    The same class comes back for the same argument. To pickle it, give it a module-level name of your own::

        class MyTrainer(with_mhe(Seq2SeqTrainer)): ...

    Raises:
        MHEError: `trainer_class` is not a subclass of `transformers.Trainer`.
    """
    if not isinstance(trainer_class, type) or not issubclass(trainer_class, Trainer):
        got = trainer_class.__name__ if isinstance(trainer_class, type) else repr(trainer_class)
        raise MHEError(f"with_mhe needs transformers.Trainer or a subclass of it; got {got}")
    if issubclass(trainer_class, MHEMixin):
        return trainer_class
    if trainer_class is Trainer:
        return MHETrainer
    if trainer_class not in _EXTENDED:
        _EXTENDED[trainer_class] = _extend(trainer_class)
    return _EXTENDED[trainer_class]


_EXTENDED: dict[type[Trainer], type[Trainer]] = {}


def _extend(trainer_class: type[Trainer]) -> type[Trainer]:
    doc = f"`{trainer_class.__module__}.{trainer_class.__qualname__}` with the keyword `mhe_config`; see `MHETrainer`."
    return type(f"MHE{trainer_class.__name__}", (MHEMixin, trainer_class), {"__doc__": doc, "__module__": __name__})
