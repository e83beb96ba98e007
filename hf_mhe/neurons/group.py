"""A group of neurons that can be compared with each other, and the live or stored weight it is read from."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hf_mhe.errors import MHEError
from hf_mhe.neurons.competing import Apart
from hf_mhe.neurons.layout import ROWS, Layout
from hf_mhe.neurons.model.offloaded import offloaded_value
from hf_mhe.neurons.model.peft_layers import AGAIN, check_copies
from hf_mhe.neurons.model.weight import attribute_at
from hf_mhe.neurons.reasons import LAZY
from hf_mhe.neurons.source import Get, Source, Stored
from hf_mhe.neurons.weight_cache import SharedWeight, WeightCache

Role = Literal["hidden", "output", "embedding"]
_UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)  # torch.compile does not trace `is_lazy`


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one layer: n directions in d dimensions, all of one kind and role.

    `name` is the dotted name of the module, with a suffix where a module holds several groups (`conv.groups.3`,
    `lstm.weight_ih_l0.forget`, `attn.c_attn.q`, `mlp.experts.5.gate`); `module` is the module's name alone.
    `parameters` names every parameter that the group is made of, with all names of a tied one, the stored one first;
    in a group of a checkpoint they are the names of its tensors. `aliases` are the names of further modules that
    share the matrix. `quantized` is the format of a weight that is stored quantized, which is read and not trained.
    `apart` says why rows that are alike make none of them superfluous (depthwise kernels see "different inputs", the
    rows of a table are "positions" or "types"); None where rows compete, as in most groups.

    Groups of a model look their parameters up through the owning module at each call, so parameters that were replaced
    (`load_state_dict(assign=True)`, resized embeddings, `fully_shard`) are followed.
    """

    name: str
    kind: str
    role: Role
    n: int
    d: int
    parameters: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    module: str = ""
    layout: Layout = field(default=ROWS, repr=False)
    source: Source | None = field(default=None, repr=False, compare=False)
    quantized: str | None = None
    apart: Apart | None = None

    @property
    def competes(self) -> bool:
        """Whether of two rows that are alike the model needs one. See Note [Rows that compete]."""
        return self.apart is None

    @property
    def stack(self) -> str | None:
        """The name with `*` for the number of the expert, head or convolution group that it is; else None.

        As a pattern of `include` it takes the whole stack: `mlp.experts.*.gate`, `attn.c_attn.q.head.*`.
        """
        suffix = self.name.removeprefix(self.module)
        if self.kind == "expert":
            suffix = re.sub(r"^(\.?)\d+(?=\.|$)", r"\1*", suffix)
        suffix = re.sub(r"((?:^|\.)(?:head|groups)\.)\d+$", r"\1*", suffix)
        # Experts that are modules of their own, in a list or a dict of modules.
        module = re.sub(r"((?:^|\.)experts\.(?:expert_)?)\d+(?=\.|$)", r"\1*", self.module)
        starred = module + suffix
        return starred if starred != self.name else None

    @property
    def requires_grad(self) -> bool:
        """Whether any of the group's parameters is trained; False for a group of a checkpoint.

        Quantized values are not, whatever they say of themselves (float8 parameters require grad by default).
        """
        source = self._bound()
        if source.root is None:
            return False
        named = zip(source.tensor_names, self.tensors(), strict=True)
        return any(tensor.requires_grad for name, tensor in named if name not in source.fixed)

    def tensors(self) -> tuple[Tensor, ...]:
        """The live tensors that the group's weight is made of, as the module holds them: usually its one parameter.

        Raises:
            MHEError: the group comes from a checkpoint, or the model no longer has the module or the parameter.
        """
        source = self._bound()
        if source.root is None:
            raise MHEError(
                f"neuron group {self.name!r} was made from a checkpoint and has no model; read it with build(get)"
            )
        found = []
        for name in source.tensor_names:
            tensor = attribute_at(source.root, source.path_of(name))
            if not isinstance(tensor, Tensor):
                raise MHEError(
                    f"neuron group {self.name!r}: the model no longer has {name!r} in module {source.module_path!r}; "
                    + AGAIN
                )
            found.append(tensor)
        return tuple(found)

    def check_in_use(self) -> None:
        """Refuse to go on where the model computes with another weight by now.

        Adapters of peft were added or switched, the module was replaced by one of another class, or its weight got a
        parametrization, weight norm or pruning.

        Raises:
            MHEError: says what the module is now, and what it was when the group was made.
        """
        source = self._bound()
        try:
            if source.root is not None:
                check_copies(source.root, source.module_path)
                if source.binding is not None:
                    source.binding.check(source.root, source.module_path)
            if source.check is not None:
                source.check()
        except MHEError as error:
            raise MHEError(f"neuron group {self.name!r}: {error}") from error

    def matrix(self, cache: WeightCache | None = None) -> Tensor:
        """The neurons as rows (n, d), in the parameter's dtype, on its device; gradients reach the parameter.

        A parametrized or normed weight of half precision is float32. A weight that accelerate has offloaded is read
        where it is kept, without a gradient. With a `cache` that goes from group to group, a weight that several are
        cut from is made once: an adapted stack of experts is one product, not one for each expert.

        Raises:
            MHEError: no live value is there: the group comes from a checkpoint, or the parameter is on the meta
                device, sharded, partitioned away (ZeRO-3), gone, or of another shape than when the group was made; or
                other adapters of peft are active than then.
        """
        source = self._bound()
        return self._rows(source, self._live(source), cache)

    def whole(self) -> Tensor:
        """The weight that the rows are cut from, before its layout is applied; gradients reach the parameter.

        Raises:
            MHEError: as `matrix`.
        """
        source = self._bound()
        tensors = self._live(source)
        self._check(source, tensors)
        return source.combine(dict(zip(source.tensor_names, tensors, strict=True)))

    def assemble(self, tensors: Sequence[Tensor]) -> Tensor:
        """The neurons as rows (n, d), made from other values of what `tensors()` returns: whole ones, in that order.

        Raises:
            MHEError: a tensor has another shape than when the group was made.
        """
        return self._rows(self._bound(), tuple(tensors))

    def build(self, get: Get | WeightCache) -> Tensor:
        """The neurons as rows (n, d), made from tensors that `get(name)` returns by the names in `parameters`.

        A `WeightCache(get)` that goes from group to group reads and makes once what several of them share.

        Raises:
            MHEError: `get` returned a tensor whose shape does not give (n, d), or the cache is that of a model.
        """
        source = self._bound()
        cache = get if isinstance(get, WeightCache) else WeightCache(get)
        if cache.get is None:
            raise MHEError(f"neuron group {self.name!r}: build needs a WeightCache(get), which reads tensors by name")
        plain = cache.get if source.reading is None else source.reading(cache.get)

        def read(stored: Stored) -> Tensor:
            made: Any = cache.once(stored.key, partial(stored.make, plain))
            return stored.pick(made)

        return self._rows(source, tuple(map(read, source.stored)))

    def prefixed(self, prefix: str) -> NeuronGroup:
        """The group of a component under the component's name, still built by the component's own names."""
        return replace(
            self,
            name=f"{prefix}.{self.name}",
            parameters=tuple(f"{prefix}.{name}" for name in self.parameters),
            aliases=tuple(f"{prefix}.{name}" for name in self.aliases),
            module=f"{prefix}.{self.module}".rstrip("."),
        )

    def _bound(self) -> Source:
        if self.source is None:
            raise MHEError(f"neuron group {self.name!r} is a description only: it is bound to no model or checkpoint")
        return self.source

    def _live(self, source: Source) -> tuple[Tensor, ...]:
        tensors = tuple(map(self._fetched, source.tensor_names, self.tensors()))
        for name, tensor, shape in zip(source.tensor_names, tensors, source.shapes, strict=True):
            self._check_live(source.path_of(name), tensor, shape)
        return tensors

    def _check(self, source: Source, tensors: tuple[Tensor, ...]) -> None:
        self.check_in_use()
        for name, tensor, shape in zip(source.tensor_names, tensors, source.shapes, strict=True):
            # A quantized tensor may be packed anew: bitsandbytes does so in a first forward pass on a CPU.
            if name not in source.fixed and tuple(tensor.shape) != shape:
                raise MHEError(
                    f"neuron group {self.name!r}: {name} has shape {tuple(tensor.shape)}, expected {shape}; {AGAIN}"
                )

    def _rows(self, source: Source, tensors: tuple[Tensor, ...], cache: WeightCache | None = None) -> Tensor:
        self._check(source, tensors)

        def make() -> Tensor:
            return source.combine(dict(zip(source.tensor_names, tensors, strict=True)))

        if cache is None:
            rows = self.layout(make())
        else:
            weight: SharedWeight = cache.once((source.module_path, source.tensor_names), lambda: SharedWeight(make()))
            rows = weight.rows(self.layout)
        if tuple(rows.shape) != (self.n, self.d):
            raise MHEError(
                f"neuron group {self.name!r}: its tensors make {tuple(rows.shape)}, expected {(self.n, self.d)}; "
                "make the groups again"
            )
        return rows

    def _fetched(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor, or the value that accelerate keeps elsewhere; a quantized one is more than its values."""
        source = self._bound()
        if not tensor.is_meta or source.root is None or name in source.fixed:
            return tensor
        value = offloaded_value(source.root, source.path_of(name))
        return tensor if value is None else value

    def _check_live(self, parameter: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        where = f"neuron group {self.name!r}: parameter {parameter}"
        if isinstance(tensor, _UNINITIALIZED):
            raise MHEError(f"{where}: {LAZY}")
        if tensor.layout is not torch.strided:
            raise MHEError(f"{where} is stored as {tensor.layout}, without directions of its rows; make it dense")
        if tensor.is_meta:
            raise MHEError(f"{where} is on the meta device and has no values; load the weights first")
        if is_dtensor(tensor):
            raise MHEError(f"{where} is a DTensor shard {tuple(tensor.shape)}; gather it with full_tensor() first")
        if tensor.numel() == 0 and hasattr(tensor, "ds_shape"):
            raise MHEError(
                f"{where} is partitioned by DeepSpeed ZeRO-3 (local shape {tuple(tensor.shape)}, full shape {shape}); "
                "read it inside deepspeed.zero.GatheredParameters"
            )


@dataclass(frozen=True)
class Coverage:
    """All parameters of two or more dimensions: in `groups`, or in `skipped` as {parameter name: reason}.

    `note` says why a checkpoint's groups could only be made by shape, or why not all of its weights can be read; None
    where there is nothing to say. `codes` names those tensors of a quantized checkpoint whose bytes are no numbers.
    """

    groups: list[NeuronGroup]
    skipped: dict[str, str]
    note: str | None = None
    codes: frozenset[str] = frozenset()

    def prefixed(self, prefix: str) -> Coverage:
        """The coverage of a checkpoint that is one component of a larger one, every name with `prefix.` before it.

        Its groups are still built by the component's own names.
        """
        return Coverage(
            [group.prefixed(prefix) for group in self.groups],
            {f"{prefix}.{name}": reason for name, reason in self.skipped.items()},
            f"{prefix}: {self.note}" if self.note else None,
            frozenset(f"{prefix}.{name}" for name in self.codes),
        )


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; torch.distributed.tensor is not imported for the question."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of the whole parameter, also where DeepSpeed ZeRO-3 has partitioned it away."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
