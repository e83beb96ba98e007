"""What the loaders of a saved model read of its folder, found as they find it: from its entry files outwards.

Note [What is published]
A file is published because a loader reads it, never because no pattern strikes it: what a training leaves behind has
new names with every engine (`global_step500/`, `*.distcp`, `random_states_0.pkl`), and a pattern that is missing
publishes an optimizer, a token or a stranger's data. So the walk starts at the names that the libraries open by
themselves, and follows what these files name: an index its shards, a pipeline's index its folders, a config the module
of its custom code, a module what it imports, the model card what it shows. Rejected: a list of what is not wanted
(always behind), and asking the libraries to load the folder (runs custom code, and reads every weight).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from hf_mhe.analysis.checkpoint.file_names import is_index, weight_files
from hf_mhe.errors import MHEError
from hf_mhe.hub.custom_code import modules_named_by, read_by_module
from hf_mhe.hub.linked import links
from hf_mhe.hub.names import OURS, README
from hf_mhe.hub.vocabulary import vocabulary_files
from hf_mhe.json_files import read_json

# What transformers, diffusers, peft, timm, sentence-transformers and the inference engines open by name.
_ENTRIES = (
    *("config.json", "generation_config.json", "adapter_config.json", "quantize_config.json", "hf_quant_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "scheduler_config.json"),
    *("audio_tokenizer_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "speaker_embeddings_path.json", "open_clip_config.json"),
    *("model_index.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
)
# Weights that a loader looks for by this name, or as a variant of it (`model.fp16.safetensors`).
_WEIGHTS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights")
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model*.bin")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".distcp")
# A part of a model that one of its configs calls for under a name of the loader's own.
_INNER_FILES = (
    "additional_chat_templates/*.jinja",
    "custom_generate/generate.py",
    "custom_generate/requirements.txt",
    "language_model/*",  # of a speech processor that decodes with a language model, beside its alphabet.json
)
_FOR_READERS = ("licen[sc]e", "licen[sc]e[.-]*", "notice", "notice.*", "copying", "copying.*", "use_policy*")
# Hidden files that are meant for the Hub: how it stores the repository, and its form of evaluation results.
_FOR_THE_HUB = (".gitattributes", ".eval_results/*.yaml", ".eval_results/*.yml")


def published_files(folder: Path) -> list[Path]:
    """The files of a folder that belong to the model, sorted. See Note [What is published].

    Raises:
        MHEError: one of them is a link that leaves the folder, or weights of a part are there as a pickle only.
    """
    return [folder / name for name in sorted(_Walk(folder).files)]


def weight_paths(folder: Path) -> list[Path]:
    """Those of a folder's published files with weights, sorted.

    Raises:
        MHEError: as of `published_files`.
    """
    return [path for path in published_files(folder) if path.suffix == ".safetensors"]


def left_out(folder: Path) -> list[str]:
    """What of a folder is not published, sorted; a folder of which nothing is, is named once, with a slash.

    Raises:
        MHEError: as of `published_files`.
    """
    published = _Walk(folder).files
    return sorted(_left_out(folder, PurePosixPath(), published))


def _left_out(folder: Path, inside: PurePosixPath, published: set[str]) -> Iterator[str]:
    for path in (folder / inside).iterdir():
        name = inside / path.name
        if path.is_dir() and not path.is_symlink():
            if any(PurePosixPath(file).is_relative_to(name) for file in published):
                yield from _left_out(folder, name, published)
            elif any(path.iterdir()):
                yield f"{name}/"
        elif name.as_posix() not in {*published, *OURS}:
            yield name.as_posix()


class _Walk:
    """The walk from a folder's entry files; `files` are the names of what it found, relative to the folder."""

    def __init__(self, folder: Path) -> None:
        self.files: set[str] = set()
        self._folder = folder
        self._home = folder.resolve()
        self._models: set[str] = set()
        self._model("")
        self._add_all(OURS)
        for pattern in _FOR_THE_HUB:
            self._add_all(path.relative_to(folder).as_posix() for path in folder.glob(pattern))
        self._card()

    def _model(self, where: str, *, named_configs: bool = False) -> None:
        """All that loading the model, or the part of one, in a folder reads; `named_configs`: any `*_config.json`."""
        if where in self._models or not self._is_inside(where) or not (self._folder / where).is_dir():
            return
        self._models.add(where)
        names = sorted(path.name for path in (self._folder / where).iterdir() if path.is_file())
        entries = (*_ENTRIES, "*_config.json") if named_configs else _ENTRIES
        configs = [name for name in names if any(fnmatch(name, entry) for entry in entries)]
        contents = {name: _json(self._folder / where / name) for name in configs if name.endswith(".json")}
        self._add_all(_join(where, name) for name in configs)
        self._weights(where, names)
        self._add_all(_join(where, name) for name in vocabulary_files(names, contents))
        self._inner_files(where, contents)
        for module in modules_named_by(contents):
            self._module(_join(where, module))
        for part, of_sentences in self._parts(where, contents):
            self._model(_join(where, part), named_configs=of_sentences)

    def _weights(self, where: str, names: list[str]) -> None:
        indices = [name for name in names if is_index(name)]
        weights = [name for name in names if _is_weights_by_name(name)]
        for index in indices:
            weight_map = _mapping(_mapping(_json(self._folder / where / index)).get("weight_map"))
            weights += [str(shard) for shard in weight_map.values()]
        if not weights and not any(index in names for index in ("model_index.json", "modules.json")):
            weights = weight_files(names, where or str(self._folder))
        pickles = [name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLED_WEIGHTS)]
        if where and pickles and not weights:
            raise MHEError(
                f"{where} in {str(self._folder)!r} has its weights in {pickles[0]!r} only, a pickle, which is not "
                "published: save it again as safetensors"
            )
        self._add_all(_join(where, name) for name in (*indices, *weights))

    def _inner_files(self, where: str, contents: dict[str, Any]) -> None:
        processor = {str(_mapping(content).get("processor_class")) for content in contents.values()}
        for pattern in _INNER_FILES:
            if pattern.startswith("language_model") and not any(name.endswith("WithLM") for name in processor):
                continue
            found = (self._folder / where).glob(pattern)
            # A language model of kenlm is called .bin, and is no pickle.
            self._add_all((path.relative_to(self._folder).as_posix() for path in found), binary=True)
            if pattern.startswith("language_model"):
                self._add(_join(where, "alphabet.json"))
        self._add_all(_join(where, name) for name in _strings(contents.get("speaker_embeddings_path.json")))

    def _module(self, module: str) -> None:
        """A module of custom code, what it imports from beside itself, and the files that it names."""
        if not module.endswith(".py") or module in self.files or not self._add(module):
            return
        for name in read_by_module(self._folder, module):
            if name.endswith(".py"):
                self._module(name)
            else:
                self._add(name)

    def _parts(self, where: str, contents: dict[str, Any]) -> Iterator[tuple[str, bool]]:
        """The folders of a model's parts, and whether sentence-transformers reads them."""
        for entry in _listing(contents.get("modules.json")):
            if isinstance(path := _mapping(entry).get("path"), str):
                yield path.rstrip("/"), True
        for config in ("router_config.json", "config.json"):
            types = _mapping(_mapping(contents.get(config)).get("types"))
            yield from ((str(name), True) for name in types)
        for name, entry in _mapping(contents.get("model_index.json")).items():
            if isinstance(entry, list):
                yield name, False
        for path in sorted((self._folder / where).iterdir()):
            # A processor's second tokenizer has a folder of its own; so has every adapter but the first.
            tokenizer = path.name.endswith("_tokenizer") and (path / "tokenizer_config.json").is_file()
            adapter = "adapter_config.json" in contents and (path / "adapter_config.json").is_file()
            if tokenizer or (adapter and not _is_checkpoint(path)):
                yield path.name, False

    def _card(self) -> None:
        """The model card, what it shows, the models that it says how to load, and the licence."""
        names = sorted(path.name for path in self._folder.iterdir() if path.is_file())
        self._add_all(name for name in names if any(fnmatch(name.lower(), pattern) for pattern in _FOR_READERS))
        if not self._add(README):
            return
        for name in links((self._folder / README).read_text(encoding="utf-8", errors="replace")):
            if self._is_inside(name) and (self._folder / name).is_dir():
                self._model(name.rstrip("/"))
            else:
                self._add(name)

    def _add_all(self, names: Iterable[str], *, binary: bool = False) -> None:
        for name in names:
            self._add(name, binary=binary)

    def _add(self, name: str, *, binary: bool = False) -> bool:
        """Take a file up, if there is such a one; never a pickle, nor a hidden file that is not meant for the Hub."""
        path = self._folder / name
        if not self._is_inside(name) or not path.is_file() or (path.suffix.lower() in _PICKLES and not binary):
            return False
        self._check_link(path)
        self.files.add(PurePosixPath(name).as_posix())
        return True

    def _is_inside(self, name: str) -> bool:
        parts = PurePosixPath(name).parts
        hidden = any(part.startswith(".") for part in parts) and not any(fnmatch(name, one) for one in _FOR_THE_HUB)
        return not hidden and not PurePosixPath(name).is_absolute() and "\0" not in name

    def _check_link(self, path: Path) -> None:
        """Refuse a link that would publish something from elsewhere, other than weights and the Hub's own cache.

        Raises:
            MHEError: names the link and where it leads.
        """
        target = path.resolve()
        # In the Hub's cache every file of a snapshot is a link to a blob beside the snapshots.
        blobs = [above.parent / "blobs" for above in self._home.parents if above.name == "snapshots"]
        if path.suffix == ".safetensors" or any(target.is_relative_to(home) for home in (self._home, *blobs)):
            return
        raise MHEError(f"{path} is a link that leads out of the folder, to {target}; put the file itself in its place")


def _is_weights_by_name(name: str) -> bool:
    stem, _, ending = name.partition(".")
    return stem in _WEIGHTS and (
        ending == "safetensors" or (ending.endswith(".safetensors") and ending.count(".") == 1)
    )


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a trainer's, and not an adapter's beside others."""
    return folder.name.startswith("checkpoint-") or (folder / "trainer_state.json").is_file()


def _join(where: str, name: str) -> str:
    return f"{where}/{name}" if where and name else where or name


def _json(path: Path) -> Any:
    """What a JSON file says; None where it is not JSON, which is an error only when it is read for its content."""
    try:
        return read_json(path)
    except MHEError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listing(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
