"""MHEConfig: the whole description of a training with MHE, saved as JSON beside the weights."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from hf_mhe._version import __version__
from hf_mhe.checks import check_number, check_option
from hf_mhe.choices import Across, Distance, Space
from hf_mhe.energy import Potential
from hf_mhe.errors import MHEError
from hf_mhe.json_files import read_json
from hf_mhe.neurons import Adapters
from hf_mhe.training.find_config import find_config
from hf_mhe.training.objectives.family_members import ObjectiveName, check_objective, options_of
from hf_mhe.training.schedule import Decay, Schedule
from hf_mhe.training.softening import AUTO, CLOSEST, AutoSoftening

CONFIG_NAME = "mhe_config.json"
_VERSION_KEY = "hf_mhe_version"
_WEIGHTS = ("hidden_weight", "output_weight", "embedding_weight")
ROLES = ("hidden", "output", "embedding")


@dataclass(frozen=True)
class MHEConfig:
    """What is regularized, by which energy, and how strongly.

    The objective is `task loss + sum over neuron groups of weight(role) * mean energy`, once per optimizer step; to it
    comes `sum over stacks of weight_across * mean energy`, where whole modules are pushed apart (`across`).
    Source: Liu et al., "Learning towards Minimum Hyperspherical Energy", NeurIPS 2018, arXiv:1805.09298, eq. for L:
    the `lambda_h` of the paper is `hidden_weight`, its `lambda_o` is `output_weight`. The value of another `objective`
    stands in place of the mean energy.

    A weight of 0 leaves a role out. All three at 0 switch the penalty off, so that a sweep over a weight can contain
    the baseline.

    Args:
        s: exponent of the energy, any finite number >= 0.
        distance: `"euclidean"` or `"angular"`.
        space: `"full"` or `"half"`; in half space a neuron repels the mirror images of the others too. The output
            role is always full space, whatever is set here: class vectors may not be mirrored.
        softening: what bounds the energy of neurons that nearly coincide, and its gradient. `"auto"`: it is
            exact where no two are closer than a cosine of 0.95 (in half space, of -0.95 too), and closer pairs count
            by its tangent there; see Note [Copies in training] in `hf_mhe/training/softening.py`. 0: it is exact
            everywhere, and two neurons that coincide are an error. Above 0: Plummer softening `eps` for all pairs,
            `rho^2 + eps^2` for `rho^2`.
        part_copies: whether neurons that coincide, and modules (`across`), are pushed apart
            (`hf_mhe.energy.walks.copies`); for the bounded energies, which give them no direction of their own.
        hidden_weight: weight of each hidden group's mean energy.
        output_weight: weight of each output group's mean energy (a classifier's last layer, an untied language-model
            head).
        embedding_weight: weight of each embedding's mean energy; 0, the default, leaves embeddings alone.
        across: what the penalty also pushes apart as a whole: `"experts"` of one stack, the attention `"heads"` of a
            layer, repeated `"layers"`, or a list of these; None, the default, for nothing. Each of k members is one
            direction, its matrices flattened, and their mean energy over pairs is in full space; see
            `hf_mhe.energy.across`.
        across_weight: weight of the mean energy of each such stack of members; None, the default, is `hidden_weight`.
        include: pattern or patterns of group names to regularize (glob; regular expression with the prefix `re:`);
            None means all.
        exclude: pattern or patterns of group names to leave out.
        only_competing: whether layers are left out whose neurons do not compete (`NeuronGroup.apart`): depthwise
            kernels, positions, token types. A pattern of `include` that matches no others takes them in as well. See
            Note [Neurons that do not compete] in `hf_mhe/training/binding.py`.
        output: pattern or patterns of the output layers of a model that does not name them itself.
        adapters: in a model with adapters of peft, whether a layer's neurons are those of the weight it computes with
            (`"effective"`), or those of the adapter's own matrices (`"own"`), as over a quantized base; see
            `hf_mhe.neuron_groups`.
        schedule: what becomes of all weights after the warm-up: `"constant"`, or a `"linear"` or `"cosine"` decay to 0
            at the last optimizer step.
        warmup_steps: optimizer steps in which all weights rise from 0 along a line.
        every_n_steps: of how many optimizer steps one computes the penalty, which then counts as often as it would
            have in all of them: `every_n_steps` times, if the weights are constant.
        budget: at most this share of the floating-point operations of a training step, in (0, 1], goes to the penalty,
            on average over the steps; None sets no limit. Where the exact penalty does not fit, each step computes an
            unbiased estimate of it and of its gradient: some of the groups in turn, the largest by a sample of their
            neurons. It stands for `every_n_steps`, which has to be 1.
        log_groups: log each group's mean energy too, as `mhe_energy/<group>`.
        objective: what is minimized in place of the mean energy, with the same engines, schedules and budget; see
            `hf_mhe.training.objectives.family_members` for what each is and what its weight multiplies. `s`,
            `distance`, `space` and `softening` are refused where it has no use for them, unless they are at their
            defaults. A budget draws groups, and no samples of neurons.
        objective_options: of the objective, such as `{"iterations": 2}` of `"srip"`; by default those of its function
            in `hf_mhe.energy.family`. Also as JSON text.

    Raises:
        MHEError: an option is unknown, a number is negative or not finite, or a value has the wrong type.
    """

    s: float = field(default=2.0, metadata={"help": "Exponent of the energy, any finite number >= 0."})
    distance: Distance = field(default="euclidean", metadata={"help": "Distance between two neurons on the sphere."})
    space: Space = field(
        default="half", metadata={"help": "Whether a neuron also repels the mirror images of the others (half)."}
    )
    softening: float | str = field(
        default=AutoSoftening(),  # type: ignore[assignment]
        metadata={"help": "Plummer softening >= 0; 0 is the exact energy, auto bounds it for near-duplicates alone."},
    )
    part_copies: bool = field(default=True, metadata={"help": "Push neurons that coincide apart."})
    hidden_weight: float = field(default=1.0, metadata={"help": "Weight of each hidden group's mean energy."})
    output_weight: float = field(default=1.0, metadata={"help": "Weight of each output group's mean energy."})
    embedding_weight: float = field(default=0.0, metadata={"help": "Weight of each embedding's mean energy."})
    across: list[str] | None = field(
        default=None, metadata={"help": "Push whole modules apart: experts, heads or layers, one or more of them."}
    )
    across_weight: float | None = field(
        default=None, metadata={"help": "Weight of the mean energy across modules; hidden_weight if not given."}
    )
    include: list[str] | None = field(
        default=None, metadata={"help": "Patterns of group names to regularize; all if not given."}
    )
    exclude: list[str] | None = field(default=None, metadata={"help": "Patterns of group names to leave out."})
    only_competing: bool = field(
        default=True, metadata={"help": "Leave out layers whose neurons do not compete, such as depthwise kernels."}
    )
    output: list[str] | None = field(
        default=None, metadata={"help": "Patterns of the output layers, for a model that does not name them itself."}
    )
    adapters: Adapters = field(
        default="effective",
        metadata={"help": "The neurons of an adapted layer: its effective weight's, or its adapter's own matrices'."},
    )
    schedule: Decay = field(
        default="constant", metadata={"help": "Decay of all weights from the end of the warm-up to the last step."}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps in which all weights rise from 0."})
    every_n_steps: int = field(
        default=1, metadata={"help": "Of how many optimizer steps one computes the penalty, for all of them."}
    )
    budget: float | None = field(
        default=None, metadata={"help": "Share of a training step's operations that the penalty may take, in (0, 1]."}
    )
    log_groups: bool = field(default=False, metadata={"help": "Log each group's mean energy too."})
    objective: ObjectiveName = field(
        default="energy", metadata={"help": "What is minimized: the energy, or another member of the family."}
    )
    objective_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the objective, as JSON, instead of its defaults."}
    )

    def __post_init__(self) -> None:
        auto = isinstance(self.softening, AutoSoftening) or self.softening == AUTO
        object.__setattr__(self, "softening", AUTO if auto else self.softening)
        for name in ("s", *_WEIGHTS, *(() if auto else ("softening",))):
            check_number(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.budget is not None:
            share = "a share of the training step's operations in (0, 1], or None"
            check_number("budget", self.budget, above=0, at_most=1, right=share)
            object.__setattr__(self, "budget", float(self.budget))
        object.__setattr__(self, "across", _kinds_across(self.across))
        if self.across_weight is not None:
            check_number("across_weight", self.across_weight)
            object.__setattr__(self, "across_weight", float(self.across_weight))
        for name in ("include", "exclude", "output"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        check_option("adapters", self.adapters, get_args(Adapters))
        for name in ("part_copies", "only_competing", "log_groups"):
            if not isinstance(getattr(self, name), bool):
                raise MHEError(f"{name} must be True or False; got {getattr(self, name)!r}")
        self.potential("hidden")  # the potential knows which distances and spaces there are
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        # As text, in which both forms of softening's default are alike.
        changed = {name: value for name, (value, default) in values.items() if str(value) != str(default)}
        options = check_objective(self.objective, self.objective_options, changed, across=self.weight_across > 0)
        object.__setattr__(self, "objective_options", options)
        self.over(math.inf)  # and the schedule which decays
        if self.budget is not None and self.every_n_steps > 1:
            raise MHEError(
                f"budget={self.budget:g} and every_n_steps={self.every_n_steps} both say how much of the penalty is "
                "computed: set one of them"
            )

    def weight(self, role: str) -> float:
        """The weight of a group's mean energy in the objective, by the group's role.

        Raises:
            MHEError: there is no such role.
        """
        check_option("role", role, ROLES)
        return float(getattr(self, f"{role}_weight"))

    @property
    def weight_across(self) -> float:
        """The weight of the mean energy of each stack of modules in the objective; 0 where none is asked for."""
        if not self.across:
            return 0.0
        return self.hidden_weight if self.across_weight is None else self.across_weight

    @property
    def potential_across(self) -> Potential:
        """The potential of a pair of modules: full space, as for outputs; see Note [A module as a direction]."""
        return self.potential("output")

    @property
    def is_off(self) -> bool:
        """Whether every weight is 0, so that training is as without MHE."""
        return not self.weight_across and not any(self.weight(role) for role in ROLES)

    def potential(self, role: str) -> Potential:
        """The potential of the groups of one role: the output role is always full space."""
        space = "full" if role == "output" else self.space
        if isinstance(self.softening, str):
            return Potential(self.s, self.distance, space, closest=CLOSEST, parts=self.part_copies)
        parts = self.part_copies and self.softening > 0
        return Potential(self.s, self.distance, space, self.softening, parts=parts)

    @property
    def options(self) -> dict[str, Any]:
        """All options of the objective: those of `objective_options`, and the defaults of the others."""
        return options_of(self.objective, self.objective_options)

    def over(self, total_steps: float) -> Schedule:
        """The schedule of the weights over a training of `total_steps` optimizer steps; `inf` for one without end.

        Raises:
            MHEError: `total_steps` is not an integer >= 1 or `inf`.
        """
        return Schedule(self.schedule, self.warmup_steps, self.every_n_steps, total_steps)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values: what `from_dict` reads and JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MHEConfig:
        """Build a config from plain values; keys of a newer version are named in one warning and left out.

        Raises:
            MHEError: `values` is not a mapping, or a value has the wrong type or is not allowed.
        """
        if not isinstance(values, Mapping):
            raise MHEError(f"an MHE config must be a mapping of field names to values; got {type(values).__name__}")
        known = {item.name for item in fields(cls)}
        unknown = [str(key) for key in values if key not in known and key != _VERSION_KEY]
        if unknown:
            writer = f"written by hf_mhe {values[_VERSION_KEY]}, " if _VERSION_KEY in values else ""
            warnings.warn(
                f"MHEConfig ({writer}read by hf_mhe {__version__}) does not know and ignores: "
                f"{', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.",
                UserWarning,
                stacklevel=2,
            )
        return cls(**{key: value for key, value in values.items() if key in known})

    @classmethod
    def of(cls, value: MHEConfig | Mapping[str, Any] | None) -> MHEConfig:
        """A config from what a user passes as `mhe_config=`: a config, a dict of its fields, or None for the defaults.

        Stricter than `from_dict`: an unknown key in a program is a slip of the pen, not a newer version.

        Raises:
            MHEError: another type, an unknown key, or a value that is not allowed.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise MHEError(f"mhe_config must be an MHEConfig or a dict of its fields; got {type(value).__name__}")
        known = [item.name for item in fields(cls)]
        unknown = [str(key) for key in value if key not in known]
        if unknown:
            raise MHEError(f"mhe_config has no field {', '.join(map(repr, unknown))}; fields: {', '.join(known)}")
        return cls(**value)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write `mhe_config.json` into a folder (made if needed) and return its path.

        Raises:
            MHEError: `save_directory` is a file.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise MHEError(f"save_directory must be a folder; {str(folder)!r} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG_NAME
        text = json.dumps({**self.to_dict(), _VERSION_KEY: __version__}, indent=2, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> MHEConfig:
        """Read `mhe_config.json` from a local folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: a folder, or a repo id; an existing folder comes first.
            revision: branch, tag or commit of the repository.
            token: Hub token, or False to send none.
            cache_dir: where the Hub cache lies, if not in its default folder.

        Raises:
            MHEError: the folder, the repository or the file is not there, or the file is not a valid config.
        """
        path = find_config(
            CONFIG_NAME, pretrained_model_name_or_path, revision=revision, token=token, cache_dir=cache_dir
        )
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except MHEError as error:
            raise MHEError(f"{path}: {error}") from error


def _patterns(name: str, value: object) -> list[str] | None:
    if value is None:
        return None
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    patterns = [pattern for pattern in given if isinstance(pattern, str) and pattern]
    if not patterns or len(patterns) < len(given):
        raise MHEError(f"{name} must be a pattern or a list of patterns (strings), or None; got {value!r}")
    return patterns


def _kinds_across(value: object) -> list[str] | None:
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if value is None or not given:
        return None
    for kind in given:
        check_option("across", kind, get_args(Across))
    return list(dict.fromkeys(given))
