"""Weights that several groups are cut from, each made once for all of them.

Note [Scope of a cache]. Whoever goes over groups makes a cache, hands it to each group, and drops it afterwards: a
cache does not notice that a parameter or a file has changed. Rejected: a cache inside the groups, which lives as long
as they do and has to find out at each call who asks, by the identity of reader and group.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from hf_mhe.neurons.layout import Layout, Slab, Then
from hf_mhe.neurons.source import Get


class WeightCache:
    """What groups of one model or one checkpoint are made of; see Note [Scope of a cache].

    It keeps the latest weight alone, since groups of one weight follow each other: memory stays at about one weight.
    With `keep_all` it keeps every one, for a penalty, whose backward pass needs them all. `get` reads the tensors of a
    checkpoint by name; it is None for a model.
    """

    def __init__(self, get: Get | None = None, *, keep_all: bool = False) -> None:
        self.get = get
        self._keep_all = keep_all
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made unless something of an equal key is kept."""
        if key not in self._made:
            if not self._keep_all:
                self._made.clear()  # first, since otherwise two weights would be in memory
            self._made[key] = make()
        return self._made[key]


class SharedWeight:
    """A weight that groups are cut from.

    A stack that trains is taken apart once for all its entries: one entry alone has a gradient of the whole stack's
    size, and a stack of a hundred experts a hundred of them.
    """

    def __init__(self, whole: Tensor) -> None:
        self._whole = whole
        self._entries: tuple[Tensor, ...] | None = None

    def rows(self, layout: Layout) -> Tensor:
        """The neurons that a layout takes out of the weight."""
        slab, rest = (layout.first, layout.second) if isinstance(layout, Then) else (layout, None)
        if not isinstance(slab, Slab) or not (self._whole.requires_grad and torch.is_grad_enabled()):
            return layout(self._whole)
        if self._entries is None:
            self._entries = self._whole.unbind()
        rows = slab.within(self._entries[slab.index])
        return rows if rest is None else rest(rows)
