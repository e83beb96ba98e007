"""The cache that goes from group to group: what it makes once, what it lets go, and whose it is."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from hf_mhe import MHEError, neuron_groups
from hf_mhe.neurons import WeightCache, checkpoint_groups


def test_one_weight_is_kept_at_a_time() -> None:
    """If this failed, the weights of a whole checkpoint would pile up in memory, or two of the largest meet there."""
    alive: list[weakref.ref[Tensor]] = []

    def get(name: str) -> Tensor:
        assert not any(ref() is not None for ref in alive), f"{name} is read while another is kept"
        made = torch.randn(6, 4)
        alive.append(weakref.ref(made))
        return made

    cache = WeightCache(get)
    for group in checkpoint_groups({f"{layer}.weight": (6, 4) for layer in "abc"}, None).groups:
        assert float(group.build(cache).sum()) != 0
    assert len(alive) == 3


def test_a_cache_that_keeps_all_makes_each_weight_once() -> None:
    """If this failed, a penalty of alternating groups would make an adapted weight again and again."""
    made: Counter[str] = Counter()
    for keep_all, times in ((True, 1), (False, 2)):
        made.clear()
        cache = WeightCache(keep_all=keep_all)
        for key in "abab":

            def make(key: str = key) -> str:
                made[key] += 1
                return key * 2

            assert cache.once(key, make) == key * 2
        assert made == {"a": times, "b": times}


def test_what_is_none_is_made_once_too() -> None:
    """If this failed, a key whose value is empty would be made again for each group."""
    calls: list[int] = []
    cache = WeightCache()
    for _ in range(2):
        assert cache.once("key", lambda: calls.append(1)) is None
    assert calls == [1]


def test_the_cache_of_a_model_reads_no_checkpoint() -> None:
    """If this failed, a group of a checkpoint would end in a TypeError from inside."""
    (group,) = checkpoint_groups({"a.weight": (6, 4)}, None).groups
    with pytest.raises(MHEError, match=r"'a': build needs a WeightCache\(get\)"):
        group.build(WeightCache())


def test_rows_with_a_cache_are_those_without() -> None:
    """If this failed, groups cut from one weight would have other neurons where they share it."""
    model = nn.LSTM(5, 4)
    cache = WeightCache()
    for group in neuron_groups(model):
        assert torch.equal(group.matrix(cache), group.matrix())
