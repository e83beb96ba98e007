"""A checkpoint's names, shapes and config give the groups of the model that loads it, value for value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_mhe.errors import MHEError
from hf_mhe.neurons import WeightCache, checkpoint_groups, coverage
from tests.neurons.stored import assert_same, described, opened


def test_minilm_on_disk_is_minilm_in_memory(minilm_path: Path) -> None:
    """If this failed, `analyze` would report different layers for a checkpoint and for the model loaded from it."""
    from transformers import AutoModel

    with opened(minilm_path) as (shapes, get, config):
        found = checkpoint_groups(shapes, config)
        assert_same(AutoModel.from_pretrained(minilm_path), found, shapes, get)
    assert found.skipped == {"embeddings.position_ids": "no parameter of BertModel takes it"}
    (group,) = [g for g in found.groups if g.name == "encoder.layer.0.intermediate.dense"]
    assert (group.n, group.d, group.role, group.kind) == (1536, 384, "hidden", "linear")
    # 6 layers of 6 dense maps, 3 tables, the pooler
    assert len(found.groups) == 6 * 6 + 3 + 1


def test_experts_stored_one_by_one_are_read_one_by_one(build: Callable[..., nn.Module], tmp_path: Path) -> None:
    """If this failed, one expert's groups would cost a reading of the whole layer, or name other experts' tensors."""
    build("mixtral").save_pretrained(tmp_path)
    reads: Counter[str] = Counter()
    with opened(tmp_path) as (shapes, get, config):
        groups = checkpoint_groups(shapes, config, include="*.mlp.experts.*").groups
        for group in groups:
            group.build(lambda name: reads.update([name]) or get(name))
    assert len(groups) == 2 * 4 * 3
    (down,) = [group for group in groups if group.name == "model.layers.1.mlp.experts.3.down"]
    assert down.parameters == ("model.layers.1.block_sparse_moe.experts.3.w2.weight",)
    experts = {name for name in shapes if ".experts." in name}
    assert set(reads) == experts


def test_tensors_that_groups_share_are_converted_once(build: Callable[..., nn.Module], tmp_path: Path) -> None:
    """If this failed, a fused tensor would be read again for each of its groups, or stale after a change."""
    build("mixtral").save_pretrained(tmp_path)
    with opened(tmp_path) as (shapes, get, config):
        state = {name: get(name).clone() for name in shapes}
        groups = checkpoint_groups(shapes, config, include="*.0.mlp.experts.*").groups
    reads: Counter[str] = Counter()

    def read(name: str) -> torch.Tensor:
        reads.update([name])
        return state[name]

    cache = WeightCache(read)
    for group in groups:
        assert torch.equal(group.build(cache), group.build(state.__getitem__))
    assert set(reads.values()) == {1}
    gate = groups[0]
    before = gate.build(cache).clone()
    state[gate.parameters[0]] += 1
    assert torch.equal(gate.build(WeightCache(read)), before + 1)
    assert torch.equal(gate.build(read), before + 1)


def test_older_names_are_followed(build: Callable[..., nn.Module]) -> None:
    """If this failed, checkpoints of before weight norm's parametrization would lose their positional convolution."""
    model = build("wav2vec2")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    config = {**model.config.to_dict(), "architectures": ["Wav2Vec2ForCTC"]}
    found = checkpoint_groups(shapes, config)
    assert_same(model, found, shapes, renamed.__getitem__)
    conv = next(group for group in found.groups if "pos_conv" in group.name)
    assert [name.rpartition(".")[2] for name in conv.parameters] == ["weight_g", "weight_v"]


def _stored(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _config(model: Any, **changes: Any) -> dict[str, Any]:
    return {**model.config.to_dict(), "architectures": [type(model).__name__], **changes}


def test_a_head_that_is_not_stored_is_skipped(build: Callable[..., nn.Module]) -> None:
    """If this failed, a base model loaded into a classifier would be charged with a head that it does not have."""
    model = build("bert", device="meta")
    base = _stored(model.bert)  # no `bert.` prefix, no classifier
    found = checkpoint_groups(base, _config(model))
    assert found.skipped == {
        "classifier.weight": "not in the checkpoint: newly initialised by BertForSequenceClassification"
    }
    assert described(found.groups) == [g for g in described(coverage(model).groups) if g[0] != "classifier"]
    assert found.groups[0].name == "bert.embeddings.word_embeddings"
    assert found.groups[0].parameters == ("embeddings.word_embeddings.weight",)


def test_a_head_that_the_class_lacks_is_named(build: Callable[..., nn.Module]) -> None:
    """If this failed, tensors that the named class does not load would be dropped in silence."""
    model = build("bert", device="meta")
    for changes in ({"architectures": ["BertModel"]}, {"architectures": None}, {"architectures": ["MyOwnBert"]}):
        found = checkpoint_groups(_stored(model), _config(model, **changes))
        assert found.skipped == {"classifier.weight": "no parameter of BertModel takes it"}
        assert described(found.groups) == described(coverage(model.bert).groups)


def test_two_stored_names_of_a_tied_matrix_are_one_group(build: Callable[..., nn.Module]) -> None:
    """If this failed, checkpoints that store a tied matrix twice would count it twice."""
    model = build("gpt2")
    state = model.state_dict()
    assert {"transformer.wte.weight", "lm_head.weight"} <= set(state)
    found = checkpoint_groups(_stored(model), _config(model))
    assert_same(model, found, _stored(model), state.__getitem__)
    assert found.groups[0].parameters == ("transformer.wte.weight", "lm_head.weight")
    del state["transformer.wte.weight"]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = checkpoint_groups(shapes, _config(model))
    assert_same(model, found, shapes, state.__getitem__)
    assert found.groups[0].parameters == ("lm_head.weight",)


def test_wrong_shape_is_named(build: Callable[..., nn.Module]) -> None:
    """If this failed, a config that belongs to another checkpoint would give a report about nothing."""
    model = build("llama", device="meta")
    with pytest.raises(MHEError) as error:
        checkpoint_groups({**_stored(model), "lm_head.weight": (61, 32)}, _config(model))
    assert str(error.value) == (
        "tensor lm_head.weight of the checkpoint has shape (61, 32), but lm_head.weight of the model that config.json "
        "describes has shape (60, 32)"
    )


def test_wrong_config_is_one_clear_error(build: Callable[..., nn.Module]) -> None:
    """If this failed, a config that builds no model would end in a traceback from inside transformers."""
    model = build("bert", device="meta")
    with pytest.raises(MHEError, match=r"config\.json: transformers cannot build BertForSequenceClassification"):
        checkpoint_groups(_stored(model), _config(model, num_attention_heads=7))


SHAPES = {
    "layers.0.weight": (6, 4),
    "conv.weight": (8, 3, 5, 5),
    "norm.weight": (6,),
    "cls_token": (1, 4),
    "score.weight": (4, 1),
    "position_ids": (2, 9),
}


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (None, "no config.json: the modules are not known"),
        ({}, "no config.json: the modules are not known"),
        ({"hidden_size": 6}, "config.json has no model_type: the modules are not known"),
        ({"model_type": "my_own"}, "model type 'my_own' is not known to the installed transformers"),
    ],
)
def test_without_a_known_class_groups_are_by_shape(config: dict[str, Any] | None, note: str) -> None:
    """If this failed, an unknown checkpoint would be refused, or presented as if its layers were known."""
    found = checkpoint_groups(SHAPES, config, dtypes={"position_ids": "I64", "conv.weight": "BF16"})
    assert found.note == note
    assert [(g.name, g.kind, g.role, g.n, g.d, g.parameters) for g in found.groups] == [
        ("layers.0", "unknown", "hidden", 6, 4, ("layers.0.weight",)),
        ("conv", "unknown", "hidden", 8, 75, ("conv.weight",)),
    ]
    assert found.skipped == {
        "cls_token": "one neuron only: energy needs at least two",
        "score.weight": "one coordinate only: directions in one dimension are nothing but signs",
        "position_ids": "dtype I64: positions, counts or flags, no weights",
    }
    weight = torch.randn(8, 3, 5, 5)
    assert torch.equal(found.groups[1].build({"conv.weight": weight}.__getitem__), weight.flatten(1))


def test_code_of_the_repository_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, analyzing a stranger's checkpoint would execute the stranger's code."""
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "evil", "architectures": ["Evil"], "auto_map": {"AutoModel": "modeling_evil.Evil"}}
    assert checkpoint_groups(SHAPES, config).note == "model type 'evil' is not known to the installed transformers"
    # A name that transformers has, but that is no model class, is not called either.
    found = checkpoint_groups({}, {"model_type": "bert", "architectures": ["BertTokenizer"], "num_hidden_layers": 1})
    assert "embeddings.word_embeddings.weight" in found.skipped


def test_tensors_of_an_unknown_quantization_are_not_read_as_weights(build: Callable[..., nn.Module]) -> None:
    """If this failed, packed integers or unscaled blocks would be reported as directions of neurons."""
    model = build("llama", device="meta")
    shapes = _stored(model)
    scaled, packed = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    shapes[f"{scaled}.weight_codebook"] = (1, 1)
    shapes[f"{packed}.weight"] = (32, 24)
    found = checkpoint_groups(shapes, _config(model, quantization_config={"quant_method": "quip"}))
    assert not {scaled, packed} & {group.name for group in found.groups}
    assert len(found.groups) == len(coverage(model).groups) - 2
    assert found.skipped[f"{scaled}.weight"] == "stored quantized (quip): directions need its scales"
    assert found.skipped[f"{packed}.weight"] == "stored quantized (quip): shape (32, 24), unpacked (32, 48)"


def test_patterns_select_alike(build: Callable[..., nn.Module]) -> None:
    """If this failed, include and exclude would mean different layers for a model and for its checkpoint."""
    model = build("gpt2", device="meta")
    found = checkpoint_groups(_stored(model), _config(model), include="lm_head")
    assert [group.name for group in found.groups] == ["transformer.wte"]
    with pytest.raises(MHEError, match=r"include pattern 'transformer\.h\.0\.mpl' matches no neuron group"):
        checkpoint_groups(_stored(model), _config(model), include="transformer.h.0.mpl")


def test_a_changed_tensor_is_refused_on_reading() -> None:
    """If this failed, a file that changed under the reader would give an energy of something else."""
    (group, _) = checkpoint_groups(SHAPES, None).groups[:2]
    with pytest.raises(MHEError, match=r"layers\.0\.weight has shape \(5, 4\), expected \(6, 4\)"):
        group.build(lambda name: torch.zeros(5, 4))
    with pytest.raises(MHEError, match=r"was made from a checkpoint and has no model; read it with build\(get\)"):
        group.matrix()
