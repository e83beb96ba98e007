"""The publishable folder, offline: what is in it, and what is refused before anything is written or sent."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hf_mhe
from hf_mhe.hub import load_report, plan_push, push_to_hub, save_for_hub
from hf_mhe.hub.folder import read_facts
from hf_mhe.hub.loader_files import published_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.mark.slow
def test_folder_holds_what_was_given(resnet: PreTrainedModel, baseline: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, the folder that quickstart makes does not load, or its reports are not those of its weights."""
    from transformers import AutoModelForImageClassification

    before = hf_mhe.analyze(baseline)
    folder = save_for_hub(
        resnet, tmp_path / "out", config=hf_mhe.MHEConfig(softening=0.1), before=before, metrics={"accuracy": 0.5}
    )
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    for name, value in resnet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert hf_mhe.MHEConfig.from_pretrained(folder) == hf_mhe.MHEConfig(softening=0.1)
    stored = load_report(folder)
    assert stored.groups == hf_mhe.analyze(resnet).groups
    assert load_report(folder, filename="energy_report_before.json").groups == before.groups
    comparison = json.loads((folder / "comparison.json").read_text())
    measured = {group.name: group.score for group in stored.groups}
    assert {row["name"]: row["after"]["score"] for row in comparison["rows"]} == measured
    assert json.loads((folder / "task_metrics.json").read_text()) == {"after": {"accuracy": 0.5}}
    readme = (folder / "README.md").read_text()
    for figure in ("mhe_scores.png", "mhe_before_after.png"):
        assert (folder / "figures" / figure).read_bytes().startswith(b"\x89PNG")
        assert f"](figures/{figure})" in readme
    save_for_hub(resnet, folder)
    left = {path.relative_to(folder).as_posix() for path in published_files(folder)}
    ours = {"README.md", "energy_report.json", "figures/mhe_scores.png"}
    assert left == ours | {"config.json", "model.safetensors"}, "files of the earlier bundle would now be false claims"


@pytest.mark.slow
def test_language_model_with_tokenizer(minilm_path: Path, tmp_path: Path) -> None:
    """If this fails, a real checkpoint with its tokenizer is not a folder that loads, or a path of ours gets out."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(minilm_path), AutoTokenizer.from_pretrained(minilm_path)
    first = "encoder.layer.0.*"
    before, after = hf_mhe.analyze(minilm_path, include=first), hf_mhe.analyze(model, include=first)
    folder = save_for_hub(model, tmp_path / "out", processor=tokenizer, before=before, after=after)
    assert AutoTokenizer.from_pretrained(folder)("energy") == tokenizer("energy")
    # The weights were not touched: an analysis in memory must agree with one of the file that they came from.
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["summary"]["mean_score_change"] == pytest.approx(0.0, abs=1e-6)
    layer = load_report(folder)["encoder.layer.0.intermediate.dense"]
    assert layer.energy == pytest.approx(0.5191, abs=5e-5)  # dense formula in float32, measured apart
    written = "".join((folder / name).read_text() for name in ("README.md", "energy_report_before.json"))
    assert str(minilm_path) not in written
    assert read_facts(folder).auto_class == "AutoModel"
    assert {path.name for path in published_files(folder)} >= {"model.safetensors", "tokenizer.json"}


def test_bad_models_write_nothing(resnet: PreTrainedModel, baseline: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, a broken model is saved, or half of a folder is left where nothing could be published."""
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    other = BertModel(BertConfig(**sizes, intermediate_size=8))
    angular = hf_mhe.analyze(baseline, distance="angular")
    plain, target = nn.Linear(3, 3), tmp_path / "out"

    def refused(message: str, model: Any = resnet, **keywords: Any) -> None:
        with pytest.raises(hf_mhe.MHEError, match=message) as caught:
            save_for_hub(model, target, **keywords)
        assert "\n" not in str(caught.value)
        assert not target.exists()

    refused("model must have save_pretrained, as those of transformers; got Linear", model=plain)
    refused("processor must have save_pretrained.* got int", processor=3)
    refused("after must be an EnergyReport .* got dict", after={})
    refused("before must be an EnergyReport, a model, a path, a repo id or None; got int", before=3)
    refused("of one potential; before has s=2, angular", before=angular, after=hf_mhe.analyze(resnet))
    refused("the report after .* is of another model", after=hf_mhe.analyze(other))
    refused("'licence' is no keyword of a model card; there are: base_model, license", licence="mit")
    refused("tags must be a list of strings; got 'one'", tags="one")
    refused("metrics_before must map names to numbers", metrics_before={"accuracy": None})
    with torch.no_grad():
        resnet.classifier[1].weight[3, 4] = torch.nan
    refused("classifier.1.weight is not finite")
    target.write_text("a file")
    with pytest.raises(hf_mhe.MHEError, match="is a file"):
        save_for_hub(baseline, target)


@pytest.mark.slow
def test_bad_folders_are_refused_before_the_hub_is_asked(resnet: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, a truncated, partial or pickled model reaches the Hub. (These tests run offline: asking would
    raise another error.)"""

    def refused(message: str, folder: Path, repo_id: Any = "alice/x", **keywords: Any) -> None:
        with pytest.raises(hf_mhe.MHEError, match=message) as caught:
            push_to_hub(folder, repo_id, **keywords)
        assert "\n" not in str(caught.value)

    good = tmp_path / "good"
    resnet.save_pretrained(good)
    for repo_id in ("x", "a/b/c", "alice/", "alice/x y", "alice/a..b", 3, None, ""):
        refused("'namespace/name'", good, repo_id)
    refused("not a folder", tmp_path / "absent")
    refused("create_pr .* revision must be None then, got 'v1'", good, create_pr=True, revision="v1")
    refused("processor is for a model in memory", good, processor=object())
    refused("'dry_run' is no keyword of a model card", good, dry_run=True)
    with pytest.raises(hf_mhe.MHEError, match="revision must be None then, got 'v1'"):
        plan_push(good, "alice/x", create_pr=True, revision="v1")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("is no saved model: it has none of config.json", empty)
    (empty / "config.json").write_text("{")
    refused("config.json is not JSON", empty)
    (empty / "config.json").write_text((good / "config.json").read_text())
    refused(r"has no \*.safetensors weights", empty)
    torch.save(resnet.state_dict(), empty / "pytorch_model.bin")
    refused(r"has no \*.safetensors weights", empty)
    whole = (good / "model.safetensors").read_bytes()
    (empty / "model.safetensors").write_bytes(whole[:-10])
    refused("model.safetensors is no whole safetensors file", empty)
    tensors = load_file(good / "model.safetensors")
    tensors["classifier.1.weight"][0, 0] = torch.inf
    save_file(tensors, empty / "model.safetensors", metadata={"format": "pt"})
    refused("model.safetensors: classifier.1.weight is not finite", empty)
    (empty / "model.safetensors").write_bytes(whole)
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (empty / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("names 'model-00001-of-00001.safetensors', which is not in the folder", empty)
    refused("HF_HUB_OFFLINE forbids asking the Hub", good)


def test_only_the_model_is_published(tmp_path: Path) -> None:
    """If this fails, secrets or a trainer's state go public, or a pipeline arrives without one of its parts."""
    parts = ["scheduler/scheduler_config.json", "unet/config.json"]
    model = ["README.md", "config.json", "model.safetensors", "model_index.json", *parts]
    rest = [
        ".env",
        ".git/config",
        "checkpoint-10/model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
    ]
    for name in [*model, *rest, "runs/events", "trainer_state.json", "rng_state_0.pth"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert [path.relative_to(tmp_path).as_posix() for path in published_files(tmp_path)] == model


def test_sharded_folder(resnet: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, a model that was saved in several shards is published without some of them."""
    resnet.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(shards) > 1
    plan = {file.path for file in plan_push(tmp_path, "alice/x")}
    assert shards | {"model.safetensors.index.json"} <= plan


def reads(folder: Path) -> Counter[str]:
    """How often a push takes each tensor from a file of safetensors, by the name that it asks for."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__name__", "") == "get_tensor":
            found[frame.f_locals["name"]] += 1

    sys.setprofile(note)
    try:
        plan_push(folder, "alice/x")
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["5GB", "10KB"])
def test_a_push_reads_every_weight_once(shard: str, resnet: PreTrainedModel, tmp_path: Path) -> None:
    """If this fails, publishing a large folder reads it twice, or leaves a weight unread that may be NaN."""
    resnet.save_pretrained(tmp_path, max_shard_size=shard)
    assert reads(tmp_path) == Counter(dict.fromkeys(resnet.state_dict(), 1))


@pytest.mark.slow
@pytest.mark.integrations
def test_a_pipeline_and_a_variant_are_read_once(tmp_path: Path) -> None:
    """If this fails, the parts of a pipeline are read twice, or weights that the analysis does not need never."""
    pytest.importorskip("diffusers")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    widths = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, **widths, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert reads(tmp_path) == Counter(dict.fromkeys(unet.state_dict(), 1))
    unet.save_pretrained(tmp_path / "unet", variant="fp16")
    assert reads(tmp_path) == Counter(dict.fromkeys(unet.state_dict(), 2)), "once in each of the two files"
    with torch.no_grad():
        unet.conv_in.bias[0] = torch.nan
    unet.save_pretrained(tmp_path / "unet", variant="fp16")
    with pytest.raises(hf_mhe.MHEError, match=r"fp16.safetensors: conv_in.bias is not finite"):
        plan_push(tmp_path, "alice/x")
