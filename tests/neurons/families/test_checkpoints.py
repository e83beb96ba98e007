"""A saved checkpoint has the groups and the energies of the model that loads it, however it was cut and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hf_mhe
from hf_mhe.neurons import checkpoint_groups
from tests.alike import assert_alike
from tests.neurons.families.table import FAMILIES
from tests.neurons.stored import assert_same, opened

SHARDS = {"one": "1GB", "several": "20KB"}


def _saved(name: str, folder: Path, shards: str = "one", dtype: torch.dtype = torch.float32) -> Any:
    """The class of the family's model, saved."""
    model: Any = FAMILIES[name].build().to(dtype)
    model.save_pretrained(folder, max_shard_size=SHARDS[shards])
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards == "several")
    return type(model)


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("shards", sorted(SHARDS))
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_groups_on_disk_are_the_groups_in_memory(name: str, shards: str, tmp_path: Path) -> None:
    """If this failed, transposed, tied, fused, renamed or sharded weights would be read as other neurons."""
    model = _saved(name, tmp_path, shards).from_pretrained(tmp_path)
    with opened(tmp_path) as (shapes, get, config):
        for by_head in (False, True):
            found = checkpoint_groups(shapes, config, by_head=by_head)
            assert_same(model, found, shapes, get, by_head=by_head)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_energies_on_disk_are_the_energies_in_memory(name: str, tmp_path: Path) -> None:
    """If this failed, the same weights would get different numbers depending on where they lie."""
    model = _saved(name, tmp_path, "several").from_pretrained(tmp_path)
    assert_alike(hf_mhe.analyze(model, by_head=True), hf_mhe.analyze(tmp_path, by_head=True))


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_checkpoint_in_bfloat16_has_the_energies_of_its_values(
    name: str, loaded: torch.dtype, tmp_path: Path
) -> None:
    """If this failed, half-precision weights would be compared in half precision, or otherwise than once loaded."""
    model = _saved(name, tmp_path, dtype=torch.bfloat16).from_pretrained(tmp_path, dtype=loaded)
    assert_alike(hf_mhe.analyze(model), hf_mhe.analyze(tmp_path))
