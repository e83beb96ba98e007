"""Adapters: published as what they are, with lines that put them on their base, and nothing of the user's disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelCard

import hf_mhe
from hf_mhe.hub import load_report, plan_push, save_for_hub
from hf_mhe.hub.paths import hub_id, is_local_path, public_name
from tests.hub.test_loading import PUSHER, assert_repeated, assert_says_nothing_of, strangers_findings
from tests.hub_server import HubServer

peft = pytest.importorskip("peft")

if TYPE_CHECKING:
    from peft import PeftModel

TINY = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def adapter(base: Path, **config: Any) -> PeftModel:
    """A LoRA adapter, not at its start, on a base that lies in a folder."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if not base.exists():
        LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2)).save_pretrained(base)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False, **config}
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))


def texts(folder: Path) -> str:
    """All that a reader can read in a folder."""
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md"))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["base", "./base", "runs/base", "{tmp}/base", "../{here}/base"])
def test_a_base_in_a_folder_is_named_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a path of the user's disk is published as the base model, or a number that nobody can repeat."""
    monkeypatch.chdir(tmp_path)
    name = name.format(tmp=tmp_path, here=tmp_path.name)
    Path(name).parent.mkdir(exist_ok=True)
    adapter(Path(name))
    model = adapter(Path(name))
    model.peft_config["default"].base_model_name_or_path = name
    folder = save_for_hub(model, "out", repo_id="alice/x", before=Path(name))
    assert name not in texts(folder).replace("base_model", "").replace("base model", "") or name == "base"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    readme = (folder / "README.md").read_text()
    assert "base_model:" not in readme
    assert "More Information Needed" not in readme
    assert "hf-mhe analyze" not in readme
    assert "must give" not in readme
    assert "```python" not in readme
    assert '`PeftModel.from_pretrained(base, "alice/x")`' in readme
    assert {"lora", "hf_mhe"} <= set(ModelCard(readme).data.tags)
    plan = {file.path for file in plan_push(folder, "alice/x")}
    assert {"adapter_model.safetensors", "adapter_config.json", "energy_report.json", "README.md"} <= plan


@pytest.mark.slow
def test_an_adapters_report_is_of_its_weights(tmp_path: Path) -> None:
    """If this fails, a folder is pushed with the energies of an adapter that it held before."""
    base = tmp_path / "base"
    model = adapter(base)
    folder = tmp_path / "out"
    model.save_pretrained(folder)  # as peft leaves it: with its path, and a card full of gaps
    untouched = texts(folder)
    assert {file.path for file in plan_push(folder, "alice/x")} >= {"energy_report.json"}
    assert texts(folder) == untouched
    save_for_hub(model, folder)
    assert load_report(folder).groups == hf_mhe.analyze(model).groups
    plan_push(folder, "alice/x")
    adapter(base, r=2).save_pretrained(tmp_path / "other")
    (folder / "adapter_model.safetensors").write_bytes((tmp_path / "other/adapter_model.safetensors").read_bytes())
    with pytest.raises(hf_mhe.MHEError, match="names no base model, so that it cannot be measured") as caught:
        plan_push(folder, "alice/x")
    assert "\n" not in str(caught.value)
    config = json.loads((tmp_path / "other/adapter_config.json").read_text())
    (tmp_path / "other/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/base"}))
    with pytest.raises(hf_mhe.MHEError, match="does not load on its base /no/base"):
        plan_push(tmp_path / "other", "alice/x")


@pytest.mark.slow
def test_a_whole_model_in_the_place_of_an_adapter(tmp_path: Path) -> None:
    """If this fails, what was merged is published, and who loads it gets the base with the adapter of before."""
    from transformers import AutoModelForCausalLM

    model, folder = adapter(tmp_path / "base"), tmp_path / "out"
    save_for_hub(model, folder, base_model="alice/base")
    assert (folder / "adapter_config.json").is_file()
    merged: Any = model.merge_and_unload()
    with torch.no_grad():
        merged.lm_head.weight.mul_(2)  # trained on
    save_for_hub(merged, folder)
    assert not list(folder.glob("adapter_*"))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(map(torch.equal, loaded.state_dict().values(), merged.state_dict().values()))
    save_for_hub(adapter(tmp_path / "base"), folder, base_model="alice/base")  # and the other way round
    assert not list(folder.glob("model*.safetensors"))
    assert (folder / "adapter_model.safetensors").is_file()


def test_an_owners_readme_survives_peft(tmp_path: Path) -> None:
    """If this fails, saving an adapter beside a README turns its `no` into `false`, as peft reads and writes it."""
    folder = tmp_path / "out"
    folder.mkdir()
    owned = "---\nlanguage: [no] # c\nlicense: mit\n---\n# Mine\n\n[More Information Needed]\n"
    (folder / "README.md").write_text(owned)
    save_for_hub(adapter(tmp_path / "base"), folder, base_model="alice/base")
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlanguage: [no] # c\nlicense: mit\n")
    assert "---\n# Mine\n\n[More Information Needed]\n" in readme
    assert "\nbase_model: alice/base\n" in readme
    assert "\nbase_model_relation: adapter\n" in readme
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "alice/base"
    with pytest.raises(hf_mhe.MHEError, match="base_model must be the id of a repository"):
        save_for_hub(adapter(tmp_path / "base"), tmp_path / "no", base_model=str(tmp_path / "base"))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("gpt2", "gpt2"),
        ("org/name", "org/name"),
        ("/home/me/base", None),
        ("./base", None),
        ("../base", None),
        ("~/base", None),
        ("C:\\models\\base", None),
        ("C:/models/base", None),
        ("\\\\server\\base", None),
        ("file:///home/me/base", None),
        ("runs/july/base", None),
        ("/c/hub/models--org--my-name/snapshots/0123456789abcdef0123456789abcdef01234567", "org/my-name"),
        ("C:\\c\\models--org--name\\snapshots\\0123456789abcdef0123456789abcdef01234567", "org/name"),
        ("", None),
        (None, None),
    ],
)
def test_names_of_models_and_paths(name: str | None, known: str | None) -> None:
    """If this fails, a folder is taken for a repository of somebody, or a repository for a folder."""
    assert hub_id(name) == known
    if name:
        assert is_local_path(name) == (known != name)
        assert not {"home", "me", "models", "c", "july"} & set(public_name(name).replace("\\", "/").split("/"))


@pytest.mark.story
def test_a_stranger_gets_the_adapter_and_its_numbers(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, an adapter on the Hub cannot be loaded by its card, or has not the energies that it claims."""
    out = hub.call(
        PUSHER
        + """
from peft import LoraConfig, get_peft_model
from transformers import (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel,
                          LlamaConfig, LlamaForCausalLM)
LlamaForCausalLM(LlamaConfig(**tiny, num_key_value_heads=2)).push_to_hub("alice/base")
BertModel(BertConfig(**tiny)).push_to_hub("alice/bert")
def lora(auto, base, name="default", task=None, target="query", **keywords):
    config = LoraConfig(task_type=task, target_modules=[target], init_lora_weights=False)
    return get_peft_model(auto.from_pretrained(base, **keywords), config, adapter_name=name)
hf_mhe.push_to_hub(lora(AutoModelForCausalLM, "alice/base", task="CAUSAL_LM", target="q_proj"), "alice/lm")
# A head of five classes on a base without one, from the folder that a Trainer leaves.
heads = lora(AutoModelForSequenceClassification, "alice/bert", task="SEQ_CLS", num_labels=5)
heads.save_pretrained(where + "/heads")
hf_mhe.push_to_hub(where + "/heads", "alice/five")
two = lora(AutoModel, "alice/bert", name="one")
two.add_adapter("two", LoraConfig(target_modules=["key"], init_lora_weights=False))
hf_mhe.push_to_hub(two, "alice/two")
two.set_adapter("two")
hf_mhe.push_to_hub(two, "alice/other")
from huggingface_hub import snapshot_download
copy = lora(AutoModelForCausalLM, snapshot_download("alice/base"), task="CAUSAL_LM", target="q_proj")
hf_mhe.push_to_hub(copy, "alice/copy")
hf_mhe.push_to_hub(copy, "alice/replaced")
merged = copy.merge_and_unload()
hf_mhe.push_to_hub(merged, "alice/merged")
hf_mhe.push_to_hub(merged, "alice/replaced")
""",
        tmp_path / "pusher",
        where=str(tmp_path),
        tiny=TINY,
    )
    assert out == {}
    repos = [f"alice/{name}" for name in ("lm", "copy", "five", "two", "other", "merged", "replaced")]
    found = strangers_findings(hub, tmp_path / "stranger", repos)
    loaded = {
        "lm": "PeftModelForCausalLM",
        "copy": "PeftModelForCausalLM",
        "five": "PeftModelForSequenceClassification",
        "two": "PeftModel",
    }
    for name, loaded_class in loaded.items():
        repo = f"alice/{name}"
        assert found[repo]["models"] == 2 * [loaded_class], "the lines to load, and those to verify"
        assert_repeated(found[repo], 1)
        assert "hf-mhe analyze" not in found[repo]["text"]
    assert found["alice/other"]["claim"] is None, "the lines load the first adapter, and the second was measured"
    assert_repeated(found["alice/merged"], 2)
    assert_repeated(found["alice/replaced"], 2)
    commits = hub.store.repos["alice/replaced"]
    files = commits.commits[commits.refs["main"]].files
    assert "model.safetensors" in files
    assert not [name for name in files if name.startswith("adapter_")]  # or transformers would load that
    for repo in repos:
        assert_says_nothing_of(tmp_path, hub, repo)
        commits = hub.store.repos[repo]
        readme = hub.store.object_path(commits.commits[commits.refs["main"]].files["README.md"].sha256).read_text()
        whole = repo in ("alice/merged", "alice/replaced")
        assert ("base_model_relation: adapter" in readme) != whole
        assert f"base_model: alice/{'base' if whole or repo in ('alice/lm', 'alice/copy') else 'bert'}\n" in readme
