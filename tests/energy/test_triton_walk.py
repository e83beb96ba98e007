"""The Triton walk: the kernels under Triton's interpreter against float64 formulas, and compiled for real GPUs.

The interpreter has to be chosen before Triton is first imported, which another test of the same process may have
done. So this file is also a program: the fixture runs it in a process of its own, once, for all cases.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mhe.energy import Potential
from hf_mhe.energy.walks import blocked
from hf_mhe.energy.walks.triton_walk import available, launch, walk
from hf_mhe.errors import MHEError
from tests.oracle import pair_values

# Triton is optional, and made for Linux alone.
pytest.importorskip("triton")

SHAPES = [(9, 7), (41, 33), (130, 65), (70, 300)]
POTENTIALS = [
    Potential(s, distance, space, softening)
    for s, distance, space, softening in itertools.product(
        (0.0, 1.0, 2.0, 1.5), ("euclidean", "angular"), ("full", "half"), (0.0, 0.3)
    )
]
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Of the value, relative to the sum of |F|. A bf16 or fp16 product is exact in float32; tf32 rounds the rows.
VALUE_TOLERANCE = {"fp32": 1e-6, "tf32": 2e-5, "bf16": 1e-6, "fp16": 1e-6}
# Of the gradient, relative to its length, measured on random rows: the slopes are rounded to 8 bits in bf16, and in
# fp16 the rows too (each 2^-9 an element, against a gradient that is a small rest on the tangent); tf32 has 11 bits.
GRADIENT_TOLERANCE = {"fp32": 3e-6, "tf32": 2e-3, "bf16": 1e-2, "fp16": 2e-2}


@dataclass(frozen=True)
class Case:
    """One call of the walk: which rows, in which precision, under which potential."""

    rows: str
    shape: tuple[int, int]
    precision: str = "fp32"
    potential: Potential = field(default_factory=Potential)
    leave_out_coincident: bool = False

    @property
    def name(self) -> str:
        left_out = ", leave out" if self.leave_out_coincident else ""
        n, d = self.shape
        return f"{self.rows} {n}x{d} {self.precision} {self.potential.describe()}{left_out}"

    @property
    def form(self) -> tuple[float, str, str, float]:
        """The potential, as the oracle takes it."""
        return self.potential.plain()[:4]  # no tangents here

    def weight(self) -> Tensor:
        generator = torch.Generator().manual_seed(sum(self.shape))
        weight = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        weight *= 0.1 + torch.rand(self.shape[0], 1, generator=generator, dtype=torch.float64)
        if self.rows == "close":
            # Next to and far from each other in the matrix, close and opposite, across tiles and panels.
            for first, second, distance in ((0, 1, 1e-3), (2, -1, 1e-5), (3, -2, 1e-7), (4, 30, 0.1), (35, 36, 0.05)):
                weight[second] = 1.7 * weight[first]
                weight[second, 5] += distance * weight[second].norm()
            weight[6] = -0.4 * weight[-3]
            weight[6, 3] += 1e-4 * weight[6].norm()
        if self.rows == "equal":
            weight[[7, 33, -1]] = 2 * weight[0]
            weight[8] = -weight[0]
        if self.rows == "collapsed":
            weight = weight[0] + 0.02 * weight
        if self.rows == "long and short":
            weight[::3] *= 1e25
            weight[1::3] *= 1e-25
        return weight.to(PRECISIONS[self.precision])


def _cases() -> list[Case]:
    cases = [Case("random", (41, 33), potential=potential) for potential in POTENTIALS]
    cases += [Case("random", (9, 7), potential=potential) for potential in POTENTIALS[1::2]]
    for (index, shape), precision in itertools.product(enumerate(SHAPES), PRECISIONS):
        cases.append(Case("random", shape, precision, POTENTIALS[(16, 18, 22, 26)[index]]))
    for s, distance, space in ((0.0, "angular", "half"), (2.0, "euclidean", "full"), (1.0, "angular", "full")):
        cases.append(Case("close", (70, 33), potential=Potential(s, distance, space)))  # type: ignore[arg-type]
    cases += [Case("close", (70, 33), precision, Potential(1.0, space="half")) for precision in ("fp32", "tf32")]
    cases += [
        Case("equal", (70, 33), potential=Potential(2.0, space=space), leave_out_coincident=True)  # type: ignore[arg-type]
        for space in ("full", "half")
    ]
    cases.append(Case("equal", (41, 33), "bf16", Potential(2.0, softening=0.1)))
    cases.append(Case("collapsed", (41, 33), potential=Potential(1.0)))
    cases.append(Case("long and short", (41, 33), "bf16", Potential(2.0, space="half")))
    return cases


CASES = {case.name: case for case in _cases()}


def _unit(weight: Tensor) -> Tensor:
    rows = weight.double()
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _run(case: Case) -> dict[str, Any]:
    weight = case.weight()
    arguments = (_unit(weight).float(), weight, case.potential)
    torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    result = walk(*arguments, gradient=True, leave_out_coincident=case.leave_out_coincident)
    forward = walk(*arguments, gradient=False, leave_out_coincident=case.leave_out_coincident)
    return {**result._asdict(), "forward": forward.value, "forward_gradient": forward.gradient}


def _own_process(task: str, path: Path, **environment: str) -> dict[str, Any]:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, task, str(path)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


def _compile_all() -> dict[str, str]:
    from hf_mhe.energy.walks.triton_walk import kernels
    from hf_mhe.energy.walks.triton_walk.launch import AMPERE, HOPPER, Tiles

    def shapes(tiles: Tiles) -> tuple[dict[str, Any], dict[str, int]]:
        shape = {"BM": tiles.m, "BN": tiles.n, "BK": tiles.k, "GROUP": tiles.group, "WIDEN": False}
        return shape, {"num_warps": tiles.warps, "num_stages": tiles.stages}

    code = {}
    form = {
        "S": 2,
        "DISTANCE": 0,
        "HALF": False,
        "TWO_SIDED": False,
        "GRADIENT": True,
        "EVEN_K": True,
        "PRECISION": "ieee",
    }
    pointers = {"rows": "*bf16", "scale": "*fp32", "slopes": "*bf16", "partial": "*fp32"}
    pointers |= {"counter": "*i32", "listed": "*i32"}
    floats = dict.fromkeys(("close_cosine", "s", "softening_squared"), "fp32")
    for capability, tiling in ((90, HOPPER), (80, AMPERE)):
        constants, options = shapes(tiling.slopes)
        code[f"slopes {capability}"] = _compile(
            kernels.slopes_kernel, capability, pointers | floats, form | constants, options
        )
        # Compiled once for a launch that reads the panel along its rows, and once along its columns.
        for contiguous in ("left_stride_k", "left_stride_m"):
            constants, options = shapes(tiling.product)
            code[f"product {capability} {contiguous}"] = _compile(
                kernels.add_product_kernel,
                capability,
                {"out": "*fp32", "left": "*bf16", "right": "*bf16"},
                constants | {contiguous: 1},
                options,
            )
    small, options = shapes(Tiles(16, 16, 16, 8, 4, 1))
    # Full space is a part of half space, except where half space has a form of its own; the same for angles.
    forms = [(s, 0, True) for s in (0, 1, 2, 3)] + [(s, 1, True) for s in (0, 1, 3)]
    for s, distance, half in forms:
        potential = {"S": s, "DISTANCE": distance, "HALF": half, "TWO_SIDED": True, "EVEN_K": False}
        code[f"potential {s} {distance} {half}"] = _compile(
            kernels.slopes_kernel, 80, pointers | floats, form | small | potential, options
        )
    return code


def _compile(kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], options: Any) -> str:
    # What launching does, for a GPU that is not there: every argument without a type is an integer divisible by 16.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    wide = [name for name in names if name not in constants and signature[name] != "fp32"]
    source = ASTSource(kernel, signature, values, {(names.index(name),): [["tt.divisibility", 16]] for name in wide})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the walk returned for every case, under the interpreter."""
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    return _own_process("interpret", path, TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PTX of the kernels; compiling needs no GPU."""
    folder = tmp_path_factory.mktemp("triton")
    return _own_process("compile", folder / "ptx.pt", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(folder))


def _pairs(unit: Tensor, potential: Potential) -> tuple[Tensor, Tensor, Tensor]:
    """Row numbers `i < j` of all pairs, and whether the two are one direction (or one line, in half space)."""
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    chord = torch.linalg.vector_norm(unit[first] - unit[second], dim=1)
    if potential.space == "half":
        chord = torch.minimum(chord, torch.linalg.vector_norm(unit[first] + unit[second], dim=1))
    return first, second, chord <= 1e-12


def _expected(case: Case) -> tuple[float, float, Tensor, Tensor]:
    """Value, sum of `|F|`, gradient on the weight and each row's length; coincident pairs pull on nothing."""
    weight = case.weight().double().requires_grad_()
    unit = _unit(weight)
    first, second, coincident = _pairs(unit.detach(), case.potential)
    apart = pair_values(unit[first[~coincident]], unit[second[~coincident]], *case.form)
    (gradient,) = torch.autograd.grad(2 * apart.sum(), weight)
    counted = apart.detach()
    if not case.leave_out_coincident:
        same = pair_values(unit[first[coincident]], unit[second[coincident]], *case.form)
        counted = torch.cat([counted, same.detach()])
    norm = torch.linalg.vector_norm(weight.detach(), dim=1, keepdim=True)
    return 2 * float(counted.sum()), 2 * float(counted.abs().sum()), gradient, norm


def _gradient_error(case: Case, gradient: Tensor, upstream: float) -> float:
    """Of the chain a caller has: an upstream gradient, projection on the sphere. Relative to the gradient's length."""
    _, _, expected, norm = _expected(case)
    unit, gradient = _unit(case.weight()), upstream * gradient.double()
    gradient = gradient - unit * (gradient * unit).sum(1, keepdim=True)
    expected = upstream * expected * norm  # rows of every length count alike
    return float((gradient - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_formula(name: str, results: dict[str, dict[str, Any]]) -> None:
    """If this fails, training on a GPU minimizes something other than the energy."""
    case, result = CASES[name], results[name]
    value, scale, _, _ = _expected(case)
    left_out = _pairs(_unit(case.weight()), case.potential)[2].sum() if case.leave_out_coincident else 0
    assert result["coincident"] == left_out
    # Near-duplicates carry nearly all of such a sum, and are held to 1e-5 for it.
    tolerance = 1e-5 if case.rows in ("close", "collapsed") else VALUE_TOLERANCE[case.precision]
    assert abs(result["value"] - value) <= tolerance * scale
    upstream = float(torch.randn((), generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    assert _gradient_error(case, result["gradient"], upstream) <= GRADIENT_TOLERANCE[case.precision]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forward_only_gives_the_same_bits(name: str, results: dict[str, dict[str, Any]]) -> None:
    """If this fails, an evaluation reports another energy than the training step it stands beside."""
    result = results[name]
    assert result["forward"] == result["value"]
    assert result["forward_gradient"] is None


@pytest.mark.slow
def test_each_precision_is_worse_than_the_one_above(results: dict[str, dict[str, Any]]) -> None:
    """If this fails, a precision is not the one that was asked for, and its tolerance proves nothing."""
    errors = {}
    for precision in PRECISIONS:
        case = Case("random", (130, 65), precision, POTENTIALS[22])
        errors[precision] = _gradient_error(case, results[case.name]["gradient"], 1.0)
    assert 10 * errors["fp32"] < errors["tf32"] < errors["bf16"]


def test_unit_rows_of_another_dtype_are_refused() -> None:
    """If this fails, float64 rows are cut to float32 without a word."""
    weight = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(MHEError, match=r"takes unit rows in float32; got torch\.float64"):
        walk(_unit(weight), weight, Potential(), gradient=True)


def test_a_distance_without_a_pair_function_is_walked_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a new distance is computed as another one on a GPU, or stops there with a compiler's error."""
    weight = Case("random", (41, 33)).weight()
    arguments = (_unit(weight).float(), weight, Potential(1.0, "angular"))
    monkeypatch.delitem(launch.DISTANCES, "angular")
    found, expected = (way.walk(*arguments, gradient=True) for way in (launch, blocked))
    assert found.value == expected.value
    assert torch.equal(found.gradient, expected.gradient)


def test_cpu_is_not_taken_for_a_gpu() -> None:
    """If this fails, every CPU energy runs through an interpreter that is thousands of times slower."""
    assert not available(torch.device("cpu"))


@pytest.mark.story
@pytest.mark.parametrize("kernel", ["slopes", "product {} left_stride_k", "product {} left_stride_m"])
@pytest.mark.parametrize(("capability", "unit"), [(90, "wgmma.mma_async"), (80, "mma.sync")])
def test_kernels_compile_to_the_matrix_units(
    kernel: str, capability: int, unit: str, machine_code: dict[str, str]
) -> None:
    """If this fails, the kernels are correct under the interpreter and useless, or slow, on a GPU."""
    name = kernel.format(capability) if "{" in kernel else f"{kernel} {capability}"
    assert unit in machine_code[name]
    # Copies that overlap with the products: what a load too narrow, or of unknown alignment, silently loses.
    assert "cp.async" in machine_code[name]


@pytest.mark.story
def test_every_form_of_potential_compiles(machine_code: dict[str, str]) -> None:
    """If this fails, a potential works in these tests and stops with a compiler's error on a GPU."""
    compiled = [code for name, code in machine_code.items() if name.startswith("potential")]
    assert len(set(compiled)) == 7


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, path = sys.argv[1:]
    torch.save(_compile_all() if task == "compile" else {name: _run(case) for name, case in CASES.items()}, path)
