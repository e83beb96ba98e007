"""What a push sends of a folder: all that a loader of the model reads, and nothing else that lies there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_mhe import MHEError
from hf_mhe.hub import plan_push
from hf_mhe.hub.loader_files import left_out, published_files
from hf_mhe.hub.names import OURS
from tests.hub.folders import FOLDERS, INTEGRATION_FOLDERS, TRAINING_STATE, bert, litter, tokenizer
from tests.hub_server import HubServer

PUSH = """
import sys, hf_mhe
from huggingface_hub import snapshot_download
for name in sys.argv[2:]:
    hf_mhe.push_to_hub(f"{sys.argv[1]}/{name}/model", f"alice/sent-{name}")
    snapshot_download(f"alice/sent-{name}", local_dir=f"{sys.argv[1]}/{name}/downloaded")
"""


@pytest.fixture(scope="module")
def places(_hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every folder of `FOLDERS`, and what a stranger downloads after it was pushed."""
    base = tmp_path_factory.mktemp("folders")
    for name, (make, _) in FOLDERS.items():
        (base / name).mkdir()
        make(base / name / "model")
    _hub_server.run(["-c", PUSH, str(base), *FOLDERS], base / "home", timeout=600)
    return {name: (base / name / "model", base / name / "downloaded") for name in FOLDERS}


@pytest.mark.story
@pytest.mark.parametrize("name", FOLDERS)
def test_what_was_pushed_loads_as_the_folder_does(name: str, places: dict[str, tuple[Path, Path]]) -> None:
    """If this fails, a loader misses a file: the push left out a vocabulary, a config, a part or a module."""
    loads_as_before(*places[name], FOLDERS[name][1])


@pytest.mark.story
@pytest.mark.parametrize("name", FOLDERS)
def test_no_training_state_is_sent(name: str, places: dict[str, tuple[Path, Path]]) -> None:
    """If this fails, an optimizer's state, another checkpoint, a token or somebody's data is public."""
    has_no_training_state(places[name][1])


@pytest.mark.story
@pytest.mark.integrations
@pytest.mark.parametrize("package", INTEGRATION_FOLDERS)
def test_folders_of_other_libraries(package: str, hub: HubServer, tmp_path: Path) -> None:
    """If this fails, a published pipeline or sentence encoder lacks a part, or carries a training state."""
    pytest.importorskip(package)
    name, make, load = INTEGRATION_FOLDERS[package]
    (tmp_path / name).mkdir()
    make(tmp_path / name / "model")
    hub.run(["-c", PUSH, str(tmp_path), name], tmp_path / "home", timeout=600)
    has_no_training_state(tmp_path / name / "downloaded")
    loads_as_before(tmp_path / name / "model", tmp_path / name / "downloaded", load)


def loads_as_before(folder: Path, downloaded: Path, load: Callable[[Path], Any]) -> None:
    expected = load(folder)
    shutil.rmtree(folder.with_name("moved"), ignore_errors=True)
    folder.rename(folder.with_name("moved"))  # nothing may be read from where it came from
    assert load(downloaded) == expected


def has_no_training_state(downloaded: Path) -> None:
    sent = {path.relative_to(downloaded).as_posix() for path in downloaded.rglob("*") if path.is_file()}
    assert {path for path in sent if not path.startswith(".cache")} & set(TRAINING_STATE) == set()
    assert [path for path in sent if path.endswith((".pt", ".pth", ".pkl", ".bin", ".log"))] == []
    assert "model.safetensors" in sent or "unet/diffusion_pytorch_model.safetensors" in sent


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in published_files(folder)}


def write(folder: Path, *files: str, **texts: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(texts.get(file, "{}"))


MODEL = ("config.json", "model.safetensors")


@pytest.mark.slow
def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If this fails, a file that somebody wanted on the Hub is missing there, and nobody said so."""
    bert().save_pretrained(tmp_path)
    write(tmp_path, "global_step5/a/b_optim_states.pt", "latest", ".env", "handler.txt", "figures/mine.png")
    named = [".env", "figures/", "global_step5/", "handler.txt", "latest"]
    assert left_out(tmp_path) == named
    plan_push(tmp_path, "alice/x")
    (record,) = caplog.records
    assert record.getMessage().endswith(": " + ", ".join(named))
    for name in named:
        shutil.rmtree(tmp_path / name) if name.endswith("/") else (tmp_path / name).unlink()
    caplog.clear()
    plan_push(tmp_path, "alice/x")
    assert caplog.records == []


def test_an_adapter_with_its_tokenizer_and_others_beside_it(tmp_path: Path) -> None:
    """If this fails, peft does not load what was published, or a checkpoint of the same run goes with it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
    model.add_adapter("second", LoraConfig(target_modules=["value"]))
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "checkpoint-7")
    model.save_pretrained(tmp_path / "best")
    write(tmp_path / "best", "trainer_state.json")
    litter(tmp_path)
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    expected = adapter | {f"second/{name}" for name in adapter} | {"tokenizer.json", "tokenizer_config.json"}
    assert expected <= names(tmp_path)
    assert names(tmp_path) - expected <= {"README.md"}


@pytest.mark.parametrize(
    ("files", "sent"),
    [
        # Shards by the index, whatever their number; shards that it does not name are of an earlier save.
        ({"model.safetensors.index.json": {"weight_map": {"a": "model-00001-of-00001.safetensors"}},
          "model-00001-of-00001.safetensors": "", "model-00001-of-00002.safetensors": ""},
         {"model.safetensors.index.json", "model-00001-of-00001.safetensors"}),
        ({"mine.safetensors": ""}, {"mine.safetensors"}),
        ({"model.fp16.safetensors": "", "model.safetensors": ""}, {"model.fp16.safetensors", "model.safetensors"}),
        ({"model.safetensors": "", "consolidated.safetensors": "", "rng.safetensors": ""}, {"model.safetensors"}),
        # Tokenizers, by their class, by their config, by the names that all have.
        ({"tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"}, "sentencepiece.bpe.model": ""},
         {"tokenizer_config.json", "sentencepiece.bpe.model"}),
        ({"tokenizer_config.json": {"tokenizer_class": "MarianTokenizer"}, "source.spm": "", "target.spm": "",
          "vocab.json": {}}, {"tokenizer_config.json", "source.spm", "target.spm", "vocab.json"}),
        ({"tokenizer_config.json": {"vocab_file": "words.lst", "fast_tokenizer_files": ["tokenizer.4.json"]},
          "words.lst": "", "tokenizer.4.json": {}}, {"tokenizer_config.json", "words.lst", "tokenizer.4.json"}),
        ({"vocab.txt": "", "special_tokens_map.json": {}, "added_tokens.json": {}, "merges.txt": ""},
         {"vocab.txt", "special_tokens_map.json", "added_tokens.json", "merges.txt"}),
        ({"chat_template.jinja": "", "additional_chat_templates/tools.jinja": "", "additional_chat_templates/x": ""},
         {"chat_template.jinja", "additional_chat_templates/tools.jinja"}),
        ({"question_encoder_tokenizer/tokenizer_config.json": {}, "question_encoder_tokenizer/vocab.txt": "",
          "question_encoder_tokenizer/x.txt": ""},
         {"question_encoder_tokenizer/tokenizer_config.json", "question_encoder_tokenizer/vocab.txt"}),
        ({"processor_config.json": {"processor_class": "Wav2Vec2ProcessorWithLM"}, "alphabet.json": {},
          "language_model/5gram.bin": "", "language_model/attrs.json": {}},
         {"processor_config.json", "alphabet.json", "language_model/5gram.bin", "language_model/attrs.json"}),
        ({"language_model/5gram.bin": ""}, set()),
        # Custom code that a config names, and what it imports; not other code, nor code of another repository.
        ({"config.json": {"auto_map": {"AutoModel": "pkg.modeling.M"}}, "pkg/modeling.py": "from ..a import b\n",
          "a.py": "from . import c, d\nimport train", "c.py": "", "d/__init__.py": "from .e import f",
          "d/e.py": "", "train.py": ""}, {"pkg/modeling.py", "a.py", "c.py", "d/__init__.py", "d/e.py"}),
        ({"config.json": {"auto_map": {"AutoModel": "alice/code--modeling.M"}}, "modeling.py": ""}, set()),
        ({"config.json": {"auto_map": {"AutoModel": "modeling.M"}}, "modeling.py": "from .modeling import (("},
         {"modeling.py"}),
        ({"config.json": {"auto_map": {"AutoModel": "modeling.M"}}, "token.json": {}, "vocabulary.yaml": "",
          "modeling.py": "PATHS = ['../../etc/passwd', '.env', 'optimizer.pt', 'vocabulary.yaml']", ".env": "",
          "optimizer.pt": ""}, {"modeling.py", "vocabulary.yaml"}),
        ({"custom_generate/generate.py": "", "custom_generate/requirements.txt": "", "custom_generate/n.txt": ""},
         {"custom_generate/generate.py", "custom_generate/requirements.txt"}),
        # The card, and what it shows.
        ({"README.md": "![a](<figures/a%20b.png>) [doc](./docs/x.md#top) <img src='b.svg?raw=true'>\n"
          "[ref]: c.pdf\nhttps://huggingface.co/a/b/resolve/main/z.png [w](https://example.org/d.png) [s](.env)\n"
          "![q](https://huggingface.co/a/b/resolve/main/assets/e.png) [o](optimizer.pt) [up](../f.png)",
          "figures/a b.png": "", "docs/x.md": "", "b.svg": "", "c.pdf": "", "d.png": "", "assets/e.png": "",
          ".env": "", "optimizer.pt": "", "z.png": ""},
         {"README.md", "figures/a b.png", "docs/x.md", "b.svg", "c.pdf", "assets/e.png"}),
        ({"README.md": 'from_pretrained(X, subfolder="plain")', "plain/config.json": {}, "plain/model.safetensors": "",
          "plain/optimizer.pt": ""}, {"README.md", "plain/config.json", "plain/model.safetensors"}),
        ({"LICENSE": "", "LICENSE.md": "", "NOTICE": "", "licence.txt": "", "COPYING": "", "licensed_users.csv": ""},
         {"LICENSE", "LICENSE.md", "NOTICE", "licence.txt", "COPYING"}),
        ({".eval_results/mine.yaml": "", ".eval_results/x.bin": "", ".gitattributes": "", ".gitignore": ""},
         {".eval_results/mine.yaml", ".gitattributes"}),
        (dict.fromkeys(OURS, "{}"), set(OURS)),
        # Parts by the index that names them, which cannot lead out of the folder.
        ({"modules.json": [{"path": "0_T"}, {"path": "../out"}, {"path": 3}], "0_T/config.json": {},
          "0_T/model.safetensors": "", "0_T/mine_config.json": {}, "9_T/config.json": {}, "0_T/log.txt": ""},
         {"modules.json", "0_T/config.json", "0_T/model.safetensors", "0_T/mine_config.json"}),
        ({"modules.json": [{"path": "0_R", "type": "mine.Router"}], "mine.py": "",
          "0_R/router_config.json": {"types": {"query_0": "x.Y"}}, "0_R/query_0/model.safetensors": ""},
         {"modules.json", "mine.py", "0_R/router_config.json", "0_R/query_0/model.safetensors"}),
        ({"model_index.json": {"_class_name": ["pipeline", "P"], "unet": ["mine", "U"], "vae": [None, None]},
          "pipeline.py": "", "unet/mine.py": "", "unet/config.json": {}, "old/config.json": {}, "other.py": ""},
         {"model_index.json", "pipeline.py", "unet/mine.py", "unet/config.json"}),
        ({"modules.json": "not json", "tokenizer_config.json": "[", "config.json": "3"},
         {"modules.json", "tokenizer_config.json"}),
    ],
)  # fmt: skip
def test_a_file_is_sent_because_something_reads_it(files: dict[str, Any], sent: set[str], tmp_path: Path) -> None:
    """If this fails, a model arrives without what its loader reads, or with what lay beside it."""
    home = tmp_path / "home"
    whole = {**({} if any(".safetensors" in name and "/" not in name for name in files) else {MODEL[1]: ""}), **files}
    for name, content in {MODEL[0]: {}, **whole}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert names(home) == sent | {MODEL[0]} | (set(MODEL) & set(whole))


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """If this fails, a link in a folder that somebody else packed publishes a file from elsewhere on this machine."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    write(home, "config.json")
    write(elsewhere, "model.safetensors", "secret", "vocab.txt")
    (home / "model.safetensors").symlink_to(elsewhere / "model.safetensors")  # weights on another disk
    (home / "notes").symlink_to(elsewhere / "secret")
    (home / "generation_config.json").symlink_to(home / "config.json")
    (home / "loop.json").symlink_to(home / "loop.json")
    assert names(home) == {"config.json", "generation_config.json", "model.safetensors"}
    assert left_out(home) == ["loop.json", "notes"]
    (home / "vocab.txt").symlink_to(elsewhere / "secret")
    with pytest.raises(MHEError, match=r"vocab\.txt is a link that leads out of the folder, to .*secret"):
        published_files(home)
    (home / "vocab.txt").unlink()
    (home / "modules.json").write_text('[{"path": "part"}]')
    (home / "part").symlink_to(elsewhere)
    with pytest.raises(MHEError, match=r"vocab\.txt is a link that leads out of the folder"):
        published_files(home)


def test_a_snapshot_of_the_hubs_cache_can_be_pushed(tmp_path: Path) -> None:
    """If this fails, what `snapshot_download` returns is refused: every file of it is a link into the cache."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    write(blobs, "1", "2")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    assert names(snapshot) == set(MODEL)


def test_a_part_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    """If this fails, a pipeline is published without the weights of one of its parts."""
    write(tmp_path, "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json")
    write(tmp_path, "vae/diffusion_pytorch_model.bin")
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}')
    with pytest.raises(MHEError, match=r"vae in .* 'diffusion_pytorch_model\.bin' only, a pickle"):
        published_files(tmp_path)
