"""EnergyCallback: how crowded a model's layers are while any Trainer trains it, in its log and its trackers.

Note [The way to the trackers]
Trainer calls the callbacks of trackers before those of its user, and adds a record to its history before it calls any.
So what a callback adds to a record in `on_log` reaches neither. A measurement is therefore a record of its own, put
into the history and given to every callback by the handler that calls this one, which is found on the stack: no event
hands it on. Rejected: `trainer.log`, for subclasses override it to add what they gathered since the last record, which
would go into this one and be missing in theirs (TRL's metrics, the parts of sentence-transformers' losses); and to ask
for the trainer, which does not exist yet where its constructor takes its callbacks.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from hf_mhe.checks import check_integer, check_number
from hf_mhe.choices import Distance, Space
from hf_mhe.errors import MHEError
from hf_mhe.neurons import Adapters
from hf_mhe.neurons.patterns import Patterns
from hf_mhe.training.config import MHEConfig
from hf_mhe.training.diagnosis import speaks
from hf_mhe.training.engines.collectives import as_first_decides
from hf_mhe.training.time_share import TimeShare
from hf_mhe.training.trainer import StepsHavePenalty
from hf_mhe.training.watch import Watch

_PREFIX = "mhe_"


class EnergyCallback(TrainerCallback):
    """Measures how crowded the neurons are while a Trainer trains, and changes nothing of the training.

    For a training without a penalty, in any `transformers.Trainer`, also TRL's and sentence-transformers', on every
    engine that MHE supports. A measurement is a record of its own in `trainer.state.log_history` and in every tracker
    that the Trainer reports to: `mhe_spread` and `mhe_equivalent_dimension` (harmonic means over the groups; a spread
    of 1 is a random draw), `mhe_mean_energy` and `mhe_score` (means), at the weights after the step, and
    `mhe_share_of_time`, the share of the time since the training began that all measurements took.

    The first step of a training and its last are always measured, and nothing else in a training that is too short for
    more within `share_of_time`. In between, every `every_n_steps`-th step is due, and measured if all measurements,
    with the one at the end, then take at most `share_of_time`: exactly that where one measurement takes about as long
    as another, and one more of them at most where some take three times as long as others (see the note in
    `hf_mhe.training.time_share`). `steps` and `skipped` say which were measured and how many were not. The process
    with rank 0 decides for all. Measured are the groups that train then, at the weights that the model has when this
    callback is called: put it before a callback that swaps averaged weights in, or after it to measure those. A
    measurement that fails is warned of once, and the training goes on.

    `MHETrainer` logs the same values of the groups that it regularizes. There this callback measures nothing and says
    so, unless it has a `prefix` of its own.

    Example::

        trainer = Trainer(model, args, train_dataset=dataset, callbacks=[EnergyCallback(every_n_steps=50)])
        trainer.train()

    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298.

    Args:
        every_n_steps: how many optimizer steps there are between measurements, at least.
        include: pattern or patterns of group names to measure (glob; regular expression with the prefix `re:`). None
            means all hidden and output layers whose neurons compete; embeddings are measured where a pattern names
            them, for theirs is most of the work.
        exclude: pattern or patterns of group names to leave out.
        share_of_time: the share of the training's time that measurements may take, in (0, 1]; None sets no limit.
        log_groups: log each group too, as `mhe_spread/<group>` and `mhe_energy/<group>`.
        s, distance, space: of the energy and the score, as in `MHEConfig`; the output role is always full space.
        output, adapters: as in `MHEConfig`.
        prefix: what the names of the values begin with.

    Attributes:
        steps: the optimizer steps that were measured in this training.
        skipped: how many more were due, and left out to stay within `share_of_time`.
        share_of_time_taken: the share of the training's time that measurements took.

    Raises:
        MHEError: an argument is not valid; and when a training begins, if the model has nothing to measure or runs on
            an engine that is not supported.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        include: Patterns = None,
        exclude: Patterns = None,
        share_of_time: float | None = 0.01,
        *,
        log_groups: bool = False,
        s: float = 2.0,
        distance: Distance = "euclidean",
        space: Space = "half",
        output: Patterns = None,
        adapters: Adapters = "effective",
        prefix: str = _PREFIX,
    ) -> None:
        self.every_n_steps = check_integer("every_n_steps", every_n_steps, at_least=1)
        if share_of_time is not None:
            right = "a share of the training's time in (0, 1], or None"
            check_number("share_of_time", share_of_time, above=0, at_most=1, right=right)
        self.share_of_time = share_of_time
        if not isinstance(prefix, str):
            raise MHEError(f"prefix must be a string; got {prefix!r}")
        self.prefix = prefix
        self.config = MHEConfig.of(
            {
                "s": s,
                "distance": distance,
                "space": space,
                "include": include,
                "exclude": exclude,
                "output": output,
                "adapters": adapters,
                "log_groups": log_groups,
            }
        )
        self._begin(None)

    def _begin(self, watch: Watch | None) -> None:
        self.steps: list[int] = []
        self.skipped = 0
        self.share_of_time_taken = 0.0
        self._watch = watch
        self._time = TimeShare(self.share_of_time)
        self._said: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        """Find what to measure: the model may be another than in the training before."""
        self._begin(None)
        penalties = [each for each in _handler().callbacks if isinstance(each, StepsHavePenalty) and each.is_on]
        if penalties and self.prefix == _PREFIX:
            self._warn(
                "penalty",
                f"{type(penalties[0].trainer).__name__} logs {_PREFIX}spread and the others of its own, so "
                "EnergyCallback measures nothing: leave it out, or give its values another name, "
                'EnergyCallback(prefix="all_")',
            )
            return
        if model is not None:
            self._begin(Watch(model, self.config))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Measure the first step and the last, and those between them that are due and for which there is time."""
        step = state.global_step
        if self._watch is None:
            return control
        if step == 1 or step >= state.max_steps or control.should_training_stop:
            return self._measure(args, state, control)
        if step % self.every_n_steps:
            return control
        if not as_first_decides(self._time.has_room(), args.device):
            self.skipped += 1
            return control
        return self._measure(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Measure the last step, where an evaluation showed that it is."""
        return self._measure(args, state, control) if control.should_training_stop else control

    on_epoch_end = on_save = on_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
        """Measure the last step, where only the end of the training shows that it is: before the trackers close."""
        if not logs or "train_runtime" not in logs:
            return control
        control = self._measure(args, state, control, before_last_record=True)
        if self.skipped and speaks():
            print(
                f"EnergyCallback measured {len(self.steps)} of {len(self.steps) + self.skipped} steps that were due, "
                f"in {self.share_of_time_taken:.2%} of the training's time",
                file=sys.stderr,
            )
        return control

    def _measure(self, args: Any, state: Any, control: Any, *, before_last_record: bool = False) -> Any:
        """Measure the current step, once, and log it."""
        if self._watch is None or state.global_step == 0 or state.global_step in self.steps[-1:]:
            return control
        self.steps.append(state.global_step)
        record: dict[str, float] = {}
        with self._time.measurement(args.device):
            try:
                record = self._watch.record()
            except MHEError as error:
                message = f"EnergyCallback could not measure optimizer step {state.global_step}: {error}"
                self._warn("failed", message)
        self.share_of_time_taken = self._time.taken
        if not record:
            return control
        named = {self.prefix + name.removeprefix(_PREFIX): value for name, value in record.items()}
        named[f"{self.prefix}share_of_time"] = self.share_of_time_taken
        return _log(args, state, control, named, before_last_record=before_last_record)

    def _warn(self, about: str, message: str) -> None:
        if about not in self._said and speaks():
            self._said.add(about)
            warnings.warn(message, UserWarning, stacklevel=3)


def _log(args: Any, state: Any, control: Any, logs: dict[str, float], *, before_last_record: bool) -> Any:
    """As `Trainer.log`: into the history, and to all callbacks of the Trainer."""
    if state.epoch is not None:
        logs["epoch"] = state.epoch
    if args.include_num_input_tokens_seen != "no":
        logs["num_input_tokens_seen"] = state.num_input_tokens_seen
    place = len(state.log_history) - before_last_record
    state.log_history.insert(place, {**logs, "step": state.global_step})
    should_log = control.should_log  # of Trainer's own record, which may still come
    control = _handler().on_log(args, state, control, logs)
    control.should_log = should_log
    return control


def _handler() -> CallbackHandler:
    """What calls this callback, and all others of the Trainer; see Note [The way to the trackers]."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise MHEError(
        "EnergyCallback was not called by a Trainer: give it to one, Trainer(..., callbacks=[EnergyCallback()])"
    )
