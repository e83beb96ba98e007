"""What an experiment is: a task, arms with their own settings to choose from, factors, seeds; and its runs."""

from __future__ import annotations

import copy
import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DECLARED = Path(__file__).parents[2] / "declared"

# Part of every key: raised by hand when the harness changes what a run with the same config computes.
PROTOCOL = 1


class ExperimentError(ValueError):
    """An experiment or an option is not right; the message says what would be."""


@dataclass(frozen=True)
class Arm:
    """One way to do it. `tuned` maps a setting ("grown.lr", dotted) to the values to choose from: the grid is tried.

    `fixed` settings are merged over the experiment's own; dotted names too.
    """

    name: str
    says: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def trials(self) -> list[dict[str, Any]]:
        """The settings to choose from, in the order in which they are declared; one empty dict if nothing is."""
        return [dict(zip(self.tuned, values, strict=True)) for values in itertools.product(*self.tuned.values())]


@dataclass(frozen=True)
class Experiment:
    """A question, and everything that its runs need.

    Attributes:
        measure: what a final run is judged by, a key of its result; the choice of settings goes by "validation".
        called: what tables and figures call the measure.
        primary: the arm whose difference to every other arm is claimed about; None where the table is the result.
        nothing: the arm in which nothing is done; the primary arm is harmful where it is below that.
        outside: arms that are shown and compared, but are no rivals (another cost, or no growth).
        factors: settings that are crossed with every arm, dotted; a table has a column per combination. A value may be
            a mapping with a "name", for what differs in many settings at once.
        claimed: the values of factors at which the claim is made; the other combinations are shown beside it.
        further: other keys of a final run's result, with what a table calls them; compared with `nothing`.
        role: of the neurons whose spread, score and copies the tables have: "hidden", or "output", the class vectors.
        quick: settings that make a run a matter of seconds, for tests and a look.
    """

    name: str
    title: str
    question: str
    task: str
    settings: Mapping[str, Any]
    arms: Sequence[Arm]
    final_seeds: Sequence[int]
    tuning_seeds: Sequence[int] = ()
    factors: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    measure: str = "test"
    called: str = "test accuracy, %"
    primary: str | None = None
    nothing: str | None = None
    outside: Sequence[str] = ()
    claimed: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)
    role: str = "hidden"
    quick: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        trials = {arm.name: len(arm.trials()) for arm in self.arms}
        if len(set(names)) != len(names):
            raise ExperimentError(f"{self.name}: two arms have one name: {', '.join(names)}")
        if set(self.tuning_seeds) & set(self.final_seeds):
            raise ExperimentError(
                f"{self.name}: a seed is in both tuning_seeds and final_seeds: final runs need fresh ones"
            )
        if len(set(trials.values())) > 1:
            raise ExperimentError(f"{self.name}: every arm gets the same number of trials; got {trials}")
        if trials and max(trials.values()) > 1 and not self.tuning_seeds:
            raise ExperimentError(f"{self.name}: its arms have settings to choose from, and there are no tuning_seeds")
        unknown = {*self.outside, *filter(None, [self.primary, self.nothing])} - set(names)
        if unknown:
            raise ExperimentError(f"{self.name} has no arm {', '.join(sorted(unknown))}; arms: {', '.join(names)}")
        if not self.claimed_cells():
            raise ExperimentError(f"{self.name}: its claim is at {self.claimed}, which no combination of factors has")

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            ExperimentError: there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ExperimentError(f"{self.name} has no arm {name!r}; arms: {', '.join(arm.name for arm in self.arms)}")

    def values(self, arm: Arm, cell: Mapping[str, Any], name: str) -> Sequence[Any]:
        """What a setting (dotted) can be in an arm: those that it chooses from, or the one that it has."""
        if name in arm.tuned:
            return arm.tuned[name]
        place: Any = merged(self.settings, arm.fixed, cell)
        for part in name.split("."):
            place = place[part]
        return [place]

    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the factors; one empty dict without any."""
        return [dict(zip(self.factors, values, strict=True)) for values in itertools.product(*self.factors.values())]

    def claimed_cells(self) -> list[dict[str, Any]]:
        """The combinations that the claim is about: all, if nothing else is declared."""
        wanted = self.claimed.items()
        return [cell for cell in self.cells() if all(cell.get(name) == value for name, value in wanted)]


@dataclass(frozen=True)
class Run:
    """One training: what `harness.tasks` gets, and where it belongs."""

    experiment: str
    task: str
    arm: str
    cell: Mapping[str, Any]
    choice: Mapping[str, Any]
    stage: str  # "tune" or "final"
    seed: int
    settings: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """What decides what the run computes, and its place in the experiment."""
        return {
            "protocol": PROTOCOL,
            "experiment": self.experiment,
            "task": self.task,
            "arm": self.arm,
            "cell": dict(self.cell),
            "choice": dict(self.choice),
            "stage": self.stage,
            "seed": self.seed,
            "settings": self.settings,
        }

    @property
    def key(self) -> str:
        """A hash of what decides what the run computes: a run that is in the results under it is done.

        Names are not part of it, so that an arm may be renamed, and two arms that meet in one setting share the run.
        """
        config = self.config()
        return key_of({name: config[name] for name in ("protocol", "task", "stage", "seed", "settings")})


def key_of(config: Mapping[str, Any]) -> str:
    """Hash of a config: the same for configs that are equal as JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_run(
    experiment: Experiment,
    arm: Arm,
    cell: Mapping[str, Any],
    choice: Mapping[str, Any],
    stage: str,
    seed: int,
    *,
    quick: bool = False,
) -> Run:
    """The run of one arm with one choice of its settings."""
    settings = merged(experiment.settings, arm.fixed, cell, choice, experiment.quick if quick else {})
    return Run(experiment.name, experiment.task, arm.name, dict(cell), dict(choice), stage, seed, settings)


def merged(base: Mapping[str, Any], *over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with other settings put over it, later ones last: `{"grown.lr": 0.1}` sets `base["grown"]["lr"]`.

    Raises:
        ExperimentError: a dotted name goes through a setting that is no mapping.
    """
    settings: dict[str, Any] = copy.deepcopy(dict(base))
    for values in over:
        for name, value in values.items():
            *path, last = name.split(".")
            place = settings
            for part in path:
                place = place.setdefault(part, {})
                if not isinstance(place, dict):
                    raise ExperimentError(f"setting {name!r} goes through {part!r}, which is {place!r} and no mapping")
            place[last] = copy.deepcopy(value)
    return settings


def label(cell: Mapping[str, Any]) -> str:
    """A combination of factors, or a choice of settings, in a few words."""
    return ", ".join(f"{name.split('.')[-1]} {_word(value)}" for name, value in cell.items())


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value["name"])
    return f"{value:g}" if isinstance(value, float) else str(value)


def declared() -> list[str]:
    """The names of the experiments that are declared."""
    return sorted(path.stem for path in DECLARED.glob("*.py") if not path.stem.startswith("_"))


def find(name: str) -> Experiment:
    """The experiment that `declared/<name>.py` defines as `EXPERIMENT`.

    Raises:
        ExperimentError: there is none of that name.
    """
    if name not in declared():
        raise ExperimentError(f"no experiment {name!r}; declared: {', '.join(declared())}")
    experiment = importlib.import_module(f"declared.{name}").EXPERIMENT
    if experiment.name != name:
        raise ExperimentError(f"declared/{name}.py defines an experiment named {experiment.name!r}")
    return experiment


def tuning_runs(experiment: Experiment) -> Iterator[Run]:
    """Seed by seed, so that an interrupted search has tried every setting equally often."""
    for seed in experiment.tuning_seeds:
        for cell in experiment.cells():
            for arm in experiment.arms:
                for choice in arm.trials():
                    yield make_run(experiment, arm, cell, choice, "tune", seed)
