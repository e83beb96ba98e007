"""The members of `hf_mhe.energy.family` as objectives of a training: one row of a table each.

Note [One lambda per member]
The penalty is the sum over groups of the weight of the group's role times the member's value, as its paper has it. The
papers do not agree on a normalisation, and none is made up here, so a weight that suits one member does not suit
another; `mhe_gradient_ratio` in the logs says how strong each is.

| objective | a group's value | grows with the layer | options | settings |
| --- | --- | --- | --- | --- |
| `energy` | mean over ordered pairs | no | | s, distance, space, softening |
| `minimal_angle` | minus the mean over neurons of the nearest angle | no | | space |
| `separation` | minus the smallest distance of a pair | no | | distance, space |
| `gram_determinant` | minus a log-determinant: a sum over n | as n | epsilon, jitter | space |
| `soft_orthogonality` | a sum of n² squares | as n | | |
| `double_soft_orthogonality` | a sum of n² and d² squares | as n and d | | |
| `srip` | a spectral norm | no | iterations | |
| `coherence` | the largest entry | no | | |
| `comhe_random` | mean over ordered pairs and projections | no | dim, projections | as energy |
| `comhe_angle_preserving` | mean over ordered pairs | no | dim, steps, step_size, unroll | as energy |
| `comhe_adversarial` | mean over ordered pairs | no | dim, steps, step_size, unroll | as energy |

`dim` is at most the dimension of a layer. The output role is in full space. Neurons that are dead to the energy
(`hf_mhe/energy/rows.py`) are dead to all members that measure directions. `gram_determinant` and `comhe_adversarial`
hold several n × n matrices of float64, the latter unless `unroll` is False.

Note [Projections of a training]
The authors of CoMHE keep a projection for the life of the model and move it at each step. Here each step draws its
own, from the regularizer's seed, the number of the step and the name of the group, and moves that: so every rank and
every resumed training has the same one, whoever computes the group. Rejected: to keep them, `k d` numbers a layer that
every engine would have to place, save and load. The start of SRIP's power iteration is drawn in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from hf_mhe.checks import check_integer, check_number, check_option
from hf_mhe.energy import Potential, family
from hf_mhe.energy.family.adversarial import adversarial_projection_energy_of
from hf_mhe.energy.family.angle_preserving import angle_preserving_projection_energy_of
from hf_mhe.energy.family.random_projection import random_projection_energy_of
from hf_mhe.energy.functional import energy_of
from hf_mhe.energy.rows import DeadRows
from hf_mhe.errors import MHEError

Options = Mapping[str, Any]

# The fields of a config that say what the energy of a pair is.
ENERGY_SETTINGS = ("s", "distance", "space", "softening")
ACROSS_SETTINGS = ("s", "distance", "softening")  # of the energy between modules, which is always in full space

ObjectiveName = Literal[
    "energy",
    "minimal_angle",
    "separation",
    "gram_determinant",
    "soft_orthogonality",
    "double_soft_orthogonality",
    "srip",
    "coherence",
    "comhe_random",
    "comhe_angle_preserving",
    "comhe_adversarial",
]

DEAD: DeadRows = "skip_negligible"  # as of the energy: see `hf_mhe/energy/rows.py`


@dataclass(frozen=True)
class Member:
    """What a config may say of a member, and how it is computed.

    Attributes:
        title: as a card names it.
        source: the arXiv id of its paper.
        value: of the matrix `(n, d)`, the potential of the group, the member's options and a seed.
        operations: of n, d, the space and the options: those of the value with its gradient.
        settings: the fields of `MHEConfig` that it has a use for, among those that say what an energy is.
        options: what `objective_options` may set, with the defaults, which are those of the function.
        draws: whether it takes a seed.
    """

    title: str
    source: str
    value: Callable[[Tensor, Potential, Options, int], Tensor]
    operations: Callable[[int, int, str, Options], int]
    settings: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)
    draws: bool = False


def check_objective(
    name: object, options: object, changed: Mapping[str, object], *, across: bool
) -> dict[str, Any] | None:
    """The options given to an objective, as a dict of plain values; None where none are.

    Args:
        name: of the objective.
        options: a dict, its JSON text, or None.
        changed: the settings of the config that are not at their defaults.
        across: whether modules are pushed apart too, which takes the energy whatever the objective is.

    Raises:
        MHEError: there is no such objective or option, a value is not allowed, or a setting of the energy was changed
            that the objective has no use for.
    """
    check_option("objective", name, get_args(ObjectiveName))
    name = str(name)
    useful = settings_in_use(name, across=across)
    for setting in (each for each in ENERGY_SETTINGS if each in changed and each not in useful):
        those = [each for each in get_args(ObjectiveName) if each not in MEMBERS or setting in MEMBERS[each].settings]
        raise MHEError(
            f"{setting}={changed[setting]!r} has no effect with objective={name!r}: leave it at its default; it is a "
            f"setting of {', '.join(those)}"
        )
    complete = options_of(name, options)
    return {key: complete[key] for key in _mapping(options)} or None


def settings_in_use(name: str, *, across: bool) -> set[str]:
    """Which of the energy's settings say something where this is the objective."""
    own = MEMBERS[name].settings if name in MEMBERS else ENERGY_SETTINGS
    return {*own, *(ACROSS_SETTINGS if across else ())}


def _mapping(options: object) -> Mapping[str, Any]:
    found = options
    if isinstance(options, str):
        try:
            found = json.loads(options)
        except ValueError:
            found = options
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise MHEError(f"objective_options must be a dict of the objective's options, or None; got {options!r}")
    return found


def options_of(name: str, options: object) -> dict[str, Any]:
    """All options of an objective: those that are set, by a dict or its JSON text, and the defaults of the others.

    Raises:
        MHEError: there is no such option, or a value is not allowed.
    """
    given = _mapping(options)
    known = MEMBERS[name].options if name in MEMBERS else {}
    unknown = [key for key in given if key not in known]
    if unknown:
        those = f"options: {', '.join(known)}" if known else "it has none"
        raise MHEError(
            f"objective={name!r} has no option {', '.join(map(repr, unknown))} in objective_options; {those}"
        )
    found = {**known, **given}
    for key, value in found.items():
        if isinstance(known[key], bool):
            if not isinstance(value, bool):
                raise MHEError(f"{key} in objective_options must be True or False; got {value!r}")
        elif isinstance(known[key], int):
            found[key] = check_integer(f"{key} in objective_options", value, at_least=_AT_LEAST[key])
        else:
            above = 0.0 if key == "epsilon" else None
            check_number(f"{key} in objective_options", value, above=above)
            found[key] = float(value)
    return found


_AT_LEAST = {"dim": 2, "projections": 1, "iterations": 1, "steps": 0}


# --- values


def _projected(
    function: Callable[..., Tensor], matrix: Tensor, potential: Potential, options: Options, seed: int
) -> Tensor:
    d = matrix.shape[1]
    if d == 1:  # a projection to one dimension leaves a direction as it is, or turns all of them around
        return energy_of(matrix, potential, dead=DEAD)
    return function(matrix, potential, **{**options, "dim": min(options["dim"], d)}, seed=seed, dead=DEAD)


def _minimal_angle(matrix: Tensor, potential: Potential, options: Options, seed: int) -> Tensor:
    return family.minimal_angle_penalty(matrix, space=potential.space, dead=DEAD)


def _separation(matrix: Tensor, potential: Potential, options: Options, seed: int) -> Tensor:
    return family.separation_penalty(matrix, distance=potential.distance, space=potential.space, dead=DEAD)


def _gram_determinant(matrix: Tensor, potential: Potential, options: Options, seed: int) -> Tensor:
    return family.gram_determinant_penalty(matrix, **options, space=potential.space, dead=DEAD)


def _with_lengths(
    function: Callable[..., Tensor], matrix: Tensor, potential: Potential, options: Options, seed: int
) -> Tensor:
    return function(matrix, **options)


def _srip(matrix: Tensor, potential: Potential, options: Options, seed: int) -> Tensor:
    return family.srip_penalty(matrix, **options, seed=seed)


# --- operations, with the gradient


def _search(n: int, d: int, space: str, options: Options) -> int:
    return n * n * d


def _smaller_gram(n: int, d: int, space: str, options: Options) -> int:
    return 6 * n * d * min(n, d)


def _power_iteration(n: int, d: int, space: str, options: Options) -> int:
    return 12 * options["iterations"] * n * d


def _determinant(n: int, d: int, space: str, options: Options) -> int:
    # A factorization n^3 / 3, two triangular solves and a product in the backward pass; in half space of two matrices.
    return 6 * n * n * d + (2 if space == "half" else 1) * 4 * n**3


def _random(n: int, d: int, space: str, options: Options) -> int:
    k = min(options["dim"], d)
    return options["projections"] * (3 * n * n * k + 6 * n * d * k)


def _moved(each_step: Callable[[int, int, int], int], n: int, d: int, space: str, options: Options) -> int:
    """After a projection that was moved: a step costs its gradient, and thrice as much again if it is unrolled."""
    k = min(options["dim"], d)
    times = 4 if options["unroll"] else 1
    return 3 * n * n * k + 6 * n * d * k + options["steps"] * times * each_step(n, d, k)


def _distortion(n: int, d: int, k: int) -> int:
    return 3 * (4 * n * d * k + 2 * n * k * k)


def _projected_energy(n: int, d: int, k: int) -> int:
    return 3 * n * n * k + 6 * n * d * k


_BANSAL, _LIN, _LIU = "1810.09102", "1906.04892", "2103.01649"

MEMBERS: dict[str, Member] = {
    "minimal_angle": Member("minimal angle (MMA)", "2006.06527", _minimal_angle, _search, settings=("space",)),
    "separation": Member(
        "hyperspherical separation (MHS)", _LIU, _separation, _search, settings=("distance", "space")
    ),
    "gram_determinant": Member(
        "Gram determinant (MGD)",
        _LIU,
        _gram_determinant,
        _determinant,
        settings=("space",),
        options={"epsilon": 1.0, "jitter": 1e-6},
    ),
    "soft_orthogonality": Member(
        "soft orthogonality (SO)", _BANSAL, partial(_with_lengths, family.soft_orthogonality_penalty), _smaller_gram
    ),
    "double_soft_orthogonality": Member(
        "double soft orthogonality (DSO)",
        _BANSAL,
        partial(_with_lengths, family.double_soft_orthogonality_penalty),
        _smaller_gram,
    ),
    "srip": Member(
        "spectral restricted isometry (SRIP)", _BANSAL, _srip, _power_iteration, options={"iterations": 2}, draws=True
    ),
    "coherence": Member("mutual coherence (MC)", _BANSAL, partial(_with_lengths, family.coherence_penalty), _search),
    "comhe_random": Member(
        "random-projection CoMHE",
        _LIN,
        partial(_projected, random_projection_energy_of),
        _random,
        settings=ENERGY_SETTINGS,
        options={"dim": 40, "projections": 20},
        draws=True,
    ),
    "comhe_angle_preserving": Member(
        "angle-preserving CoMHE",
        _LIN,
        partial(_projected, angle_preserving_projection_energy_of),
        partial(_moved, _distortion),
        settings=ENERGY_SETTINGS,
        options={"dim": 30, "steps": 1, "step_size": 0.01, "unroll": True},
        draws=True,
    ),
    "comhe_adversarial": Member(
        "adversarial CoMHE",
        _LIN,
        partial(_projected, adversarial_projection_energy_of),
        partial(_moved, _projected_energy),
        settings=ENERGY_SETTINGS,
        options={"dim": 30, "steps": 1, "step_size": 0.001, "unroll": True},
        draws=True,
    ),
}
