"""How a class's own code uses its bare parameters: which axes count the neurons, and which are their coordinates.

Note [Neurons by use]. A bare parameter of shape (256, 256) does not say whether its rows or its columns are neurons;
the expression that uses it does. `F.linear(x, self.w)` compares inputs with its rows, `x @ self.w` with its columns,
`F.embedding(ids, self.w)` looks rows up, and `einsum("ibh,hnd->ibnd", x, self.w)` sums over h, so that each (n, d) is
a neuron. So the source of the class is read, and never run: a product one of whose operands is a parameter, seen
through casts, transpositions, `self.w[expert]` and local names. Where there is no such product, or two that disagree,
or no source, nothing is known. Rejected: going by names (transformers stores "*_proj" both
ways), and running the forward pass (its inputs would have to be invented).
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from torch import nn

from hf_mhe.neurons.kinds.from_source.class_source import methods


@dataclass(frozen=True)
class Use:
    """What products do with a parameter; axes are counted from the last one, which is -1.

    Axes that are neither `neurons` nor `coordinates` count matrices: a stack. `table` marks rows that are looked up,
    `entry` a product not with the parameter but with an entry of it, `self.<name>[index]`.
    """

    neurons: tuple[int, ...]
    coordinates: tuple[int, ...]
    table: bool = False
    entry: bool = False

    def transposed(self) -> Use:
        """The same of the stored tensor, where its last two axes change places before the product."""
        swap = {-1: -2, -2: -1}
        neurons, coordinates = (tuple(swap.get(a, a) for a in axes) for axes in (self.neurons, self.coordinates))
        return replace(self, neurons=neurons, coordinates=coordinates)


@dataclass(frozen=True)
class _Operand:
    """`self.<name>` in a product, its last two axes changed or not; `entry` where it was `self.<name>[index]`.

    `normed` is the stored axis along which it was brought to unit length before.
    """

    name: str
    transposed: bool = False
    entry: bool = False
    normed: int | None = None


_ROWS, _COLUMNS = Use((-2,), (-1,)), Use((-1,), (-2,))
_CASTS = frozenset({"bfloat16", "contiguous", "cuda", "double", "float", "half", "to", "type", "type_as"})
_FUNCTIONAL = frozenset({"", "F", "functional", "nn.functional", "torch.nn.functional"})
_PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "matmul", "mm"})


_KNOWN: WeakKeyDictionary[type, Mapping[str, Use]] = WeakKeyDictionary()


def uses(cls: type[nn.Module]) -> Mapping[str, Use]:
    """Parameter name -> its use, for the parameters that the methods of a class use in one way only."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _read(cls)
    return _KNOWN[cls]


def _read(cls: type[nn.Module]) -> Mapping[str, Use]:
    found: dict[str, set[Use]] = {}
    by_entry: set[str] = set()
    for method in methods(cls):
        for operand, use in _Method(method).uses():
            stored = use.transposed() if operand.transposed else use
            if operand.normed is not None and stored.coordinates != (operand.normed,):
                continue  # each coordinate is divided by another norm: the product is not with these directions
            found.setdefault(operand.name, set()).add(stored)
            if operand.entry:
                by_entry.add(operand.name)
    return {name: replace(*ways, entry=name in by_entry) for name, ways in found.items() if len(ways) == 1}


class _Method:
    """One method: the products in it, and what its local names stand for."""

    def __init__(self, method: ast.FunctionDef) -> None:
        self._method = method
        self._self = method.args.args[0].arg
        self._values: dict[str, list[ast.expr]] = {}
        stored: Counter[str] = Counter(argument.arg for argument in ast.walk(method) if isinstance(argument, ast.arg))
        for node in ast.walk(method):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._name(target, node.value)
            elif isinstance(node, (ast.For, ast.comprehension)):
                # What a loop runs over, it takes entries of.
                self._name(node.target, ast.Subscript(node.iter, ast.Constant(0)))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored[node.id] += 1
        # A name that is also an argument, unpacked, or made from itself may stand for more than its values here.
        for name, values in list(self._values.items()):
            if stored[name] > len(values) or any(name in _names_in(value) for value in values):
                del self._values[name]

    def _name(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._values.setdefault(target.id, []).append(value)

    def uses(self) -> Iterator[tuple[_Operand, Use]]:
        for node in ast.walk(self._method):
            for expression, use in _products(node):
                for operand in self._operands(expression, frozenset()):
                    yield operand, use

    def _operands(self, node: ast.expr, inside: frozenset[str]) -> Iterator[_Operand]:
        """The parameters that an expression may be."""
        if isinstance(node, ast.Name) and node.id not in inside:
            for value in self._values.get(node.id, ()):
                yield from self._operands(value, inside | {node.id})
        elif isinstance(node, ast.IfExp):
            yield from self._operands(node.body, inside)
            yield from self._operands(node.orelse, inside)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self._self:
                yield _Operand(node.attr)
            elif node.attr in ("T", "mT"):
                yield from map(_flipped, self._operands(node.value, inside))
        elif isinstance(node, ast.Subscript):
            for operand in self._operands(node.value, inside):
                if not isinstance(node.slice, (ast.Tuple, ast.Slice)):
                    yield replace(operand, entry=True)
                elif ast.unparse(node.slice) in (":, None", "(:, None)"):  # an axis more before the last two
                    yield operand
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "normalize" and ast.unparse(node.func.value) in _FUNCTIONAL and node.args:
                axis = _axis_of_normalize(node)
                if axis is not None:
                    yield from (_normed(operand, axis) for operand in self._operands(node.args[0], inside))
            elif node.func.attr in _CASTS:
                yield from self._operands(node.func.value, inside)
            elif node.func.attr == "t" or (node.func.attr == "transpose" and _are_last_two(node.args)):
                yield from map(_flipped, self._operands(node.func.value, inside))


def _names_in(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _flipped(operand: _Operand) -> _Operand:
    return replace(operand, transposed=not operand.transposed)


def _axis_of_normalize(call: ast.Call) -> int | None:
    """The axis of a matrix, from the last, that `F.normalize` brings to unit length; None where it is not known."""
    given = [*call.args[2:3], *(keyword.value for keyword in call.keywords if keyword.arg == "dim")]
    axes = {"0": -2, "-2": -2, "1": -1, "-1": -1}
    return axes.get(ast.unparse(given[0])) if given else -1


def _normed(operand: _Operand, axis: int) -> _Operand:
    stored = {-1: -2, -2: -1}[axis] if operand.transposed else axis
    return replace(operand, normed=stored)


def _are_last_two(axes: list[ast.expr]) -> bool:
    return sorted(map(ast.unparse, axes)) in (["-1", "-2"], ["0", "1"], ["1", "2"])


def _products(node: ast.AST) -> Iterator[tuple[ast.expr, Use]]:
    """(operand, what the product does with it) for the operands of a product."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        yield node.left, _ROWS
        yield node.right, _COLUMNS
        return
    if not isinstance(node, ast.Call):
        return
    home, _, function = ast.unparse(node.func).rpartition(".")
    operands = list(node.args)
    if function in ("linear", "embedding") and home in _FUNCTIONAL:
        weight = operands[1:2] or [keyword.value for keyword in node.keywords if keyword.arg == "weight"]
        yield from ((operand, replace(_ROWS, table=function == "embedding")) for operand in weight)
    elif function in _PRODUCTS and isinstance(node.func, ast.Attribute):
        if home != "torch":
            operands.insert(0, node.func.value)
        if len(operands) >= 2:
            yield from zip(operands[-2:], (_ROWS, _COLUMNS), strict=True)
    elif function == "einsum" and home in ("", "torch"):
        equation, *operands = operands or [ast.Constant(None)]
        if isinstance(equation, ast.Constant) and isinstance(equation.value, str):
            yield from _einsum(equation.value.replace(" ", ""), operands)


def _einsum(equation: str, operands: list[ast.expr]) -> Iterator[tuple[ast.expr, Use]]:
    """Summed over with the others: a coordinate. In the output alone: a neuron. In all of them: a stack."""
    inputs, arrow, output = equation.partition("->")
    terms = inputs.replace("...", "").split(",")
    if not arrow or len(terms) != len(operands):
        return
    for index, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        others = "".join(terms[:index] + terms[index + 1 :])
        axes = {letter: position - len(term) for position, letter in enumerate(term)}
        neurons = tuple(axis for letter, axis in axes.items() if letter in output and letter not in others)
        coordinates = tuple(axis for letter, axis in axes.items() if letter in others and letter not in output)
        stacks = [letter for letter in axes if letter in others and letter in output]
        if neurons and coordinates and len(neurons) + len(coordinates) + len(stacks) == len(term):
            yield operand, Use(neurons, coordinates)
