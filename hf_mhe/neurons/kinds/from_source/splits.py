"""How a class's own code cuts the output of one of its layers into projections.

Note [Split by use]. Around `self.qkv(x)` the forward says it all: `.reshape(B, N, 3, heads, -1)`, a permutation and
`.unbind(0)` make queries, keys and values of thirds; `.view(B, N, heads, 3, d)` of each head's thirds; `.chunk(2,
dim=-1)` of halves; `.split([...], dim=-1)` of what the sizes say. So the source is read, and never run: where the
output of a layer goes through views and permutations to one cut along its channels, with sizes that are numbers or the
module's own attributes. A part is called as the code calls it; of two that are multiplied, the gate is the one that an
activation function takes first. Whatever else happens on the way, two cuts that disagree, or sizes that do not add up
to the layer's rows: the layer stays one group. Rejected: running the forward on marked inputs, which would have to be
invented.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from torch import nn

from hf_mhe.neurons.kinds.from_source.class_source import methods


@dataclass(frozen=True)
class View:
    """A reshape to `sizes`, expressions of which some are attributes of the module."""

    sizes: tuple[ast.expr, ...]


@dataclass(frozen=True)
class Order:
    """A permutation of the axes; two axes alone change places."""

    axes: tuple[int, ...]
    swap: bool = False


@dataclass(frozen=True)
class SourceSplit:
    """What becomes of the output of `self.<layer>`: `steps`, then a cut along `axis` into parts called `names`.

    `how` is "unbind", "chunk", "split" (`sizes` is then an expression), or "glu", by F.glu or, where `by` names one,
    by the `nn.GLU` of the module of that name, which says the axis.
    """

    layer: str
    steps: tuple[View | Order, ...]
    how: str = ""
    axis: int = 0
    sizes: ast.expr | None = None
    names: tuple[str, ...] = ()
    by: str = ""


_KNOWN: WeakKeyDictionary[type, tuple[SourceSplit, ...]] = WeakKeyDictionary()
_MENTIONS = re.compile(r"\b(unbind|chunk|split|permute)\(|\b[gG][lL][uU]\b")
_SAME = frozenset({"bfloat16", "contiguous", "float", "half", "to", "type_as"})
_FUNCTIONAL = frozenset({"F", "functional", "nn.functional", "torch.nn.functional"})


def source_splits(cls: type[nn.Module]) -> tuple[SourceSplit, ...]:
    """All cuts of layers' outputs in the methods of a class."""
    if cls not in _KNOWN:
        _KNOWN[cls] = tuple(cut for method in methods(cls, _MENTIONS) for cut in _Method(method).found)
    return _KNOWN[cls]


class _Method:
    """One method, read statement by statement with what its names hold by then."""

    def __init__(self, method: ast.FunctionDef) -> None:
        self._self = method.args.args[0].arg
        self._known: dict[str, SourceSplit] = {}
        self._sizes: dict[str, ast.expr] = {}
        self._gated = set(_gated(method))
        self.found: list[SourceSplit] = []
        self._read(method.body)

    def _read(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._assign(node.targets[0], node.value)
            elif isinstance(node, ast.Return) and node.value is not None:
                self._output(node.value)
            elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
                continue  # a bias moves no row
            elif isinstance(node, ast.If):
                self._branches(node.body, node.orelse)
            elif isinstance(node, (ast.With, ast.AsyncWith)):
                self._read(node.body)
            else:
                self._forget(node)

    def _branches(self, *bodies: list[ast.stmt]) -> None:
        before, ends = (dict(self._known), dict(self._sizes)), []
        for body in bodies:
            self._known, self._sizes = dict(before[0]), dict(before[1])
            self._read(body)
            if not (body and isinstance(body[-1], (ast.Return, ast.Raise))):
                ends.append((self._known, self._sizes))
        if not ends:
            ends.append(({}, {}))
        (known, sizes), *others = ends
        self._known = {k: v for k, v in known.items() if all(other[0].get(k) == v for other in others)}
        self._sizes = {k: v for k, v in sizes.items() if all(other[1].get(k) is v for other in others)}

    def _forget(self, node: ast.stmt) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self._known.pop(part.id, None)
                self._sizes.pop(part.id, None)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        output = self._output(value)
        cut = self._cut(value, output, target) if isinstance(target, ast.Tuple) else None
        self._forget(ast.Assign([target], value))
        if cut is not None:
            self.found.append(cut)
        elif isinstance(target, ast.Name):
            if output is not None:
                self._known[target.id] = output
            elif all(name.id in (self._self, *self._sizes) for name in _names(value)):
                self._sizes[target.id] = _with_sizes(value, self._sizes)

    def _output(self, node: ast.expr) -> SourceSplit | None:
        """The layer's output that an expression is, after its steps."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._output(node.left) if self._output(node.right) is None else None
        if not isinstance(node, ast.Call):
            return None
        home, _, function = ast.unparse(node.func).rpartition(".")
        if function == "glu" and home in _FUNCTIONAL and node.args:
            self._halve(self._output(node.args[0]), _axis(node, 1, -1), "")
            return None
        if home == self._self:
            for argument in node.args:
                self._halve(self._output(argument), 0, function)
            return SourceSplit(function, ())
        if function == "linear" and home in _FUNCTIONAL:
            weight = node.args[1:2] or [keyword.value for keyword in node.keywords if keyword.arg == "weight"]
            owner, _, name = ast.unparse(weight[0]).rpartition(".") if weight else ("", "", "")
            within, _, layer = owner.rpartition(".")
            return SourceSplit(layer, ()) if name == "weight" and within == self._self else None
        before = self._output(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if before is None or node.keywords:
            return None
        if function in _SAME:
            return before
        step: View | Order | None = None
        if function in ("reshape", "view"):
            listed = isinstance(node.args[0], (ast.Tuple, ast.List)) if node.args else False
            sizes = node.args[0].elts if listed else node.args  # type: ignore[attr-defined]
            step = View(tuple(_with_sizes(size, self._sizes) for size in sizes))
        elif function in ("permute", "transpose"):
            axes = [_number(argument) for argument in node.args]
            if None not in axes:
                step = Order(tuple(axis for axis in axes if axis is not None), function == "transpose")
        return replace(before, steps=(*before.steps, step)) if step is not None else None

    def _halve(self, output: SourceSplit | None, axis: int | None, by: str) -> None:
        if output is not None and axis is not None:
            self.found.append(replace(output, how="glu", axis=axis, names=("up", "gate"), by=by))

    def _cut(self, value: ast.expr, output: SourceSplit | None, target: ast.Tuple) -> SourceSplit | None:
        names = tuple(element.id for element in target.elts if isinstance(element, ast.Name))
        if len(names) != len(target.elts):
            return None
        if names in self._gated or names[::-1] in self._gated:
            names = ("gate", "up") if names in self._gated else ("up", "gate")
        if output is not None:  # unpacking takes entries of the first axis; of a module's call it is a tuple instead
            return replace(output, how="unbind", names=names) if output.steps else None
        if not isinstance(value, ast.Call):
            return None
        home, _, how = ast.unparse(value.func).rpartition(".")
        if how not in ("unbind", "chunk", "split") or not isinstance(value.func, ast.Attribute):
            return None
        operand, first = (value.args[0], 1) if home == "torch" and value.args else (value.func.value, 0)
        output = self._output(operand)
        axis = _axis(value, first + (how != "unbind"), 0)
        if output is None or axis is None:
            return None
        given = value.args[first : first + 1] or [k.value for k in value.keywords if k.arg != "dim"]
        sizes = _with_sizes(given[0], self._sizes) if how != "unbind" and given else None
        return replace(output, how=how, axis=axis, sizes=sizes, names=names)


def _gated(method: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """(a, b) for each `act(a) * b` and `b * act(a)`: a is the gate, whatever the code calls it."""
    for node in ast.walk(method):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for call, name in ((node.left, node.right), (node.right, node.left)):
                if isinstance(call, ast.Call) and isinstance(name, ast.Name) and len(call.args) == 1:
                    (argument,) = call.args
                    if isinstance(argument, ast.Name) and argument.id != name.id:
                        yield argument.id, name.id


def _axis(call: ast.Call, position: int, default: int) -> int | None:
    given = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg in ("dim", "axis"))]
    return _number(given[0]) if given else default


def _number(node: ast.expr) -> int | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return value if type(value) is int else None


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (part for part in ast.walk(node) if isinstance(part, ast.Name))


def _with_sizes(node: ast.expr, sizes: dict[str, ast.expr]) -> ast.expr:
    """An expression with the sizes that its names stand for put in their place."""

    class Put(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return sizes.get(name.id, name)

    return Put().visit(copy.deepcopy(node))


def worth(module: nn.Module, node: ast.expr) -> int | list[int] | None:
    """What an expression of numbers and the module's own attributes comes to; None for any other."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, (ast.List, ast.Tuple)):
        each = [worth(module, element) for element in node.elts]
        return [size for size in each if isinstance(size, int)] if all(isinstance(s, int) for s in each) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = worth(module, node.operand)
        return -value if isinstance(value, int) else None
    if isinstance(node, ast.BinOp):
        left, right = worth(module, node.left), worth(module, node.right)
        return _computed(left, node.op, right) if isinstance(left, int) and isinstance(right, int) else None
    if isinstance(node, ast.Attribute):
        # The names in an expression are the method's own `self`; of others, no attribute is followed.
        found = module
        first, *path = ast.unparse(node).split(".")
        if first != "self":
            return None
        for name in path:
            found = getattr(found, name, None)  # type: ignore[assignment]
        if type(found) is int:
            return found
        if isinstance(found, (list, tuple)) and all(type(size) is int for size in found):
            return list(found)
    return None


def _computed(left: int, operation: ast.operator, right: int) -> int | None:
    if isinstance(operation, ast.Mult):
        return left * right
    if isinstance(operation, ast.Add):
        return left + right
    if isinstance(operation, ast.Sub):
        return left - right
    if isinstance(operation, ast.FloorDiv) and right:
        return left // right
    return None
