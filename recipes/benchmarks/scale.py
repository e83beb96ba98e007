"""What the penalty costs a rank on a large model under FSDP2, counted from shapes alone: writes SCALE.md.

    python recipes/benchmarks/scale.py > recipes/benchmarks/SCALE.md

Nothing is measured here. Who walks what is asked of the library's own plan (`hf_mhe.training.engines.plan`), and what
a budget draws of its own allotment (`hf_mhe.training.budget.allotment`). tests/engines/test_scale.py counts the
operations and the bytes of two real processes and holds `cost` to them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mhe.training.budget.allotment import Allotment, allot
from hf_mhe.training.engines.plan import OPERATIONS_PER_BYTE, GroupShape, Workload, make_plan, operations


class Weight(NamedTuple):
    """A weight of n neurons in d dimensions, and the size of the sample of them that is walked, if not all are."""

    n: int
    d: int
    sample: int | None = None


class Cost(NamedTuple):
    """What one penalty costs each rank.

    Attributes:
        operations: floating-point operations of the walk, int64 `(ranks,)`.
        received: bytes of weights and of gradients that come from other ranks, int64 `(ranks,)`.
        whole: how many weights go whole to one rank; the others are walked by rows.
    """

    operations: Tensor
    received: Tensor
    whole: int


class Llama(NamedTuple):
    """The shape of a Llama."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    key_value: int
    vocabulary: int

    def weights(self) -> list[Weight]:
        """The regularized weights: all linear layers and the language-model head; the embedding is not."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        layer = [Weight(h, h), Weight(kv, h), Weight(kv, h), Weight(h, h), Weight(i, h), Weight(i, h), Weight(h, i)]
        return [*layer * self.layers, Weight(self.vocabulary, h)]

    def parameters(self) -> int:
        """Parameters of two dimensions, the embedding included."""
        return sum(weight.n * weight.d for weight in self.weights()) + self.vocabulary * self.hidden


LLAMAS = (Llama("7 B", 4096, 11008, 32, 4096, 32000), Llama("70 B", 8192, 28672, 80, 1024, 32000))
RANKS = (8, 16, 32, 64, 128, 256, 512)
TOKENS = 8192  # of a rank in an optimizer step
BUDGET = 0.02
BYTES = 4  # FSDP2 keeps float32 shards
DRAWS = 16


@functools.cache
def chunks(n: int, ranks: int) -> Tensor:
    """The rows of a dimension that each rank holds, as `Shard` cuts it."""
    step = -(-n // ranks)
    return (n - step * torch.arange(ranks)).clamp(0, step)


def shape(weight: Weight, ranks: int, itemsize: int = BYTES) -> GroupShape:
    """A weight as the budget and the plan see it, sharded by rows."""
    size = weight.n * weight.d * itemsize
    return GroupShape(weight.n, weight.d, rows=int(chunks(weight.n, ranks)[0]), size=size)


def cost(weights: Sequence[Weight], ranks: int, itemsize: int = BYTES) -> Cost:
    """Each rank's part in one penalty on weights that are sharded by rows.

    With b the item size and m of n rows held by a rank, a weight of n x d that goes whole to one rank has it receive
    `(n - m) d b` bytes and do `3 n^2 d` operations, and every other rank receive `m d b` bytes of gradient. A weight
    that is walked by rows has every rank receive `(n - m) d b` bytes and do `3 m^2 d + 4 m (n - m) d` operations.
    """
    costs = [shape(weight, ranks, itemsize).cost(weight.sample, ranks) for weight in weights]
    walkers = make_plan(tuple(costs), ranks)
    work, received = torch.zeros(ranks, dtype=torch.int64), torch.zeros(ranks, dtype=torch.int64)
    for weight, each, walker in zip(weights, costs, walkers, strict=True):
        m, row = chunks(weight.n, ranks), weight.d * itemsize
        if walker is None:
            work += 3 * m * m * weight.d + 4 * m * (weight.n - m) * weight.d
            received += (weight.n - m) * row
        else:
            work[walker] += each.whole
            received += m * row
            received[walker] += (weight.n - 2 * m[walker]) * row
    return Cost(work, received, sum(walker is not None for walker in walkers))


def budgeted(weights: Sequence[Weight], allotment: Allotment, ranks: int) -> tuple[float, float]:
    """The busiest rank's operations and received bytes for what a budget draws, as means over some steps."""
    work = received = 0.0
    for step in range(DRAWS):
        drawn = allotment.draw(step, seed=0)
        spent = cost([weights[index]._replace(sample=allotment.rows[index]) for index in drawn], ranks)
        work, received = work + int(spent.operations.max()), received + int(spent.received.max())
    return work / DRAWS, received / DRAWS


def transient(weight: Weight, itemsize: int = BYTES) -> int:
    """Bytes that a rank needs while it walks a weight whole: as it came, put together, its unit rows, its gradient."""
    return weight.n * weight.d * (2 * itemsize + 4 + 4)


HEAD = f"""# The penalty on large models, on paper

Written by `recipes/benchmarks/scale.py`; nothing here was measured on a large model. Operations and bytes are counted
from the shapes, by the plan and the budget that the library itself follows under FSDP2. `tests/engines/test_scale.py`
counts both in two real processes that hold small FSDP2 models, and compares them with the same formulas: the bytes are
equal, and the operations are what the formulas say and up to a twelfth more, the squares on the walk's diagonal.

On R ranks, of which one holds m of the n rows of an n x d weight, b bytes an element:

| a weight | operations | bytes that a rank receives |
| --- | --- | --- |
| goes whole to one rank | `3 n^2 d` there | `(n - m) d b` there, `m d b` of gradient everywhere else |
| is walked by rows | `3 m^2 d + 4 m (n - m) d` everywhere | `(n - m) d b` everywhere |

The plan takes whichever leaves the busiest rank less to do, a byte counted as {OPERATIONS_PER_BYTE} operations. A step
of a rank is `6 x parameters x tokens` operations, {TOKENS} tokens; all linear layers and the head are regularized, and
the shards are float32. What a share of the operations is in time depends on the precision: the walk's products run in
float32 (TF32 where that is allowed), a step's in bfloat16. The exchange goes on while the last weights are walked,
round by round; it comes on top of what FSDP2 itself gathers and reduces, three times all parameters a step.

With a budget the busiest rank keeps to {BUDGET:.0%} of its step's operations as the budget counts them: an operation
of the walk as one and a half.
"""


def tables() -> str:
    """SCALE.md."""
    lines = [HEAD]
    for llama in LLAMAS:
        weights = llama.weights()
        step = 6 * llama.parameters() * TOKENS
        exact = sum(operations(w.n, w.d) for w in weights)
        largest = max(weights, key=lambda w: w.n * w.d)
        lines += [
            f"## {llama.name}",
            "",
            f"{len(weights)} weights, {llama.parameters() / 1e9:.2f} B parameters. A step of a rank is "
            f"{step / 1e12:.0f} TFLOP, the exact penalty {exact / 1e12:.0f} TFLOP",
            f"on all ranks together. The largest weight, {largest.n} x {largest.d}, needs "
            f"{transient(largest) / 1e9:.1f} GB on a rank that walks it whole.",
            "",
            "| ranks | exact: TFLOP of the busiest rank | share of its step | weights walked whole | GB it receives "
            f"| `budget={BUDGET}`: TFLOP | share | of the exact penalty | GB it receives |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for ranks in RANKS:
            full = cost(weights, ranks)
            work, received = int(full.operations.max()), int(full.received.max())
            workload = Workload(tuple(shape(weight, ranks) for weight in weights), ranks)
            made = allot(workload, (1.0,) * len(weights), BUDGET * step)
            some, came = (work, received) if made.is_exact else budgeted(weights, made, ranks)
            lines.append(
                f"| {ranks} | {work / 1e12:.2f} | {100 * work / step:.2f} % | {full.whole} | {received / 1e9:.1f} "
                f"| {some / 1e12:.2f} | {100 * some / step:.2f} % "
                f"| {'all' if made.is_exact else f'{100 * made.mean / exact:.0f} %'} | {came / 1e9:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(), end="")
