"""What a folder on disk holds: whether it is a publishable model, of which library, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mhe.errors import MHEError
from hf_mhe.hub.adapter import Adapter, find_adapter, read_adapter
from hf_mhe.hub.loader_files import weight_paths
from hf_mhe.json_files import read_json_object

# The endings of transformers' class names that name a task: (ending, Auto class, the Hub's name of the task).
_TASKS = (
    ("ForImageClassification", "AutoModelForImageClassification", "image-classification"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForAudioClassification", "AutoModelForAudioClassification", "audio-classification"),
    ("ForObjectDetection", "AutoModelForObjectDetection", "object-detection"),
    ("ForSemanticSegmentation", "AutoModelForSemanticSegmentation", "image-segmentation"),
)
# The file that says of which library a folder is; the first that is there decides.
_LIBRARIES = (
    ("adapter_config.json", "peft"),
    ("modules.json", "sentence-transformers"),
    ("model_index.json", "diffusers"),
)


@dataclass(frozen=True)
class ModelFacts:
    """What can be said of a model from its config alone.

    `auto_class` is the transformers class that loads it, `task` the Hub's name of what it does; None where unknown.
    `code` is where code of its own lies that its loading runs, `weights` its file of weights where that is one.
    `is_repeatable` says whether `analyze` finds the groups of the report in the files alone, without the class.
    """

    library: str | None = None
    architecture: str | None = None
    auto_class: str | None = None
    task: str | None = None
    code: str | None = None
    weights: str | None = None
    is_pipeline: bool = False
    adapter: Adapter | None = None
    is_repeatable: bool = True


def read_facts(folder: Path) -> ModelFacts:
    """The facts of a model folder.

    Raises:
        MHEError: the folder has no config file of a library, or one that is not JSON.
    """
    place = find_adapter(folder)
    library = next((name for file, name in _LIBRARIES if (folder / file).is_file()), None)
    config = folder / "config.json"
    if library is None and place is not None and not config.is_file():
        library = "peft"
    if library == "peft":
        assert place is not None
        return ModelFacts(library, adapter=read_adapter(folder, place))
    if library == "diffusers":
        return ModelFacts(library, _class_name(read_json_object(folder / "model_index.json")), is_pipeline=True)
    if library == "sentence-transformers":
        return ModelFacts(library, _sentence_class(folder))
    if not config.is_file():
        if library is None:
            known = ", ".join(["config.json", *(file for file, _ in _LIBRARIES)])
            raise MHEError(f"folder {str(folder)!r} is no saved model: it has none of {known}")
        return ModelFacts(library)
    content = read_json_object(config)
    if "_diffusers_version" in content:
        return ModelFacts("diffusers", _class_name(content))
    if "model_type" not in content:
        if isinstance(content.get("architecture"), str) and "pretrained_cfg" in content:
            return ModelFacts("timm", content["architecture"])
        weights = [path.name for path in folder.glob("*.safetensors")]
        return ModelFacts(weights=weights[0] if len(weights) == 1 else None)
    architectures = content.get("architectures") or [None]
    architecture = architectures[0] if isinstance(architectures, list) else None
    auto_map = content.get("auto_map")
    if isinstance(auto_map, dict) and isinstance(architecture, str):
        found = _own_code(folder, architecture, auto_map)
        if found is not None:
            auto_class, code = found
            return replace(facts_of("transformers", architecture), auto_class=auto_class, code=code)
    return facts_of("transformers", architecture, content["model_type"])


def _class_name(content: dict[str, Any]) -> str | None:
    name = content.get("_class_name")
    return name if isinstance(name, str) else None


def _sentence_class(folder: Path) -> str:
    """The class of sentence-transformers that loads a folder, which writes its name there since version 5."""
    config = folder / "config_sentence_transformers.json"
    name = read_json_object(config).get("model_type") if config.is_file() else None
    return name if isinstance(name, str) else "SentenceTransformer"


def _own_code(folder: Path, architecture: str, auto_map: dict[str, Any]) -> tuple[str, str] | None:
    """The Auto class that loads a model with code of its own, and where that code lies; None: it is not there."""
    autos = [(key, value) for key, value in auto_map.items() if key.startswith("AutoModel") and isinstance(value, str)]
    autos.sort(key=lambda item: item[1].rpartition(".")[2] != architecture)
    for auto_class, value in autos:
        repo, _, inside = value.rpartition("--")
        file = inside.split(".")[0] + ".py"
        if repo:
            return auto_class, f"{repo}/{file}"
        if (folder / file).is_file():
            return auto_class, file
    return None


def facts_of(library: str | None, architecture: str | None, model_type: str | None = None) -> ModelFacts:
    """The facts that follow from a library, the name of a model's class and its `model_type`."""
    if library != "transformers" or not isinstance(architecture, str):
        return ModelFacts(library, architecture if isinstance(architecture, str) else None)
    for ending, auto_class, task in _TASKS:
        if architecture.endswith(ending):
            return ModelFacts(library, architecture, _loading_class(architecture, auto_class, model_type), task)
    auto_class = "AutoModel" if architecture.endswith("Model") else architecture
    return ModelFacts(library, architecture, _loading_class(architecture, auto_class, model_type))


def _loading_class(architecture: str, auto_class: str, model_type: str | None) -> str | None:
    """The class of transformers that loads an architecture: the Auto class if that would choose it, else itself.

    An Auto class goes by `model_type` and would load the weights of a class that it does not know, a user's own one,
    as those of another. None: transformers has no such class.
    """
    import transformers

    if architecture not in dir(transformers):  # which, unlike getattr, does not import the model's module
        return None
    if model_type is None or auto_class == architecture:
        return auto_class
    chosen = getattr(transformers, auto_class)._model_mapping._model_mapping.get(model_type, ())
    return auto_class if architecture in ((chosen,) if isinstance(chosen, str) else chosen) else architecture


def check_files(folder: Path) -> None:
    """Make sure that a folder's weights are safetensors, and that all their files are there and whole.

    Raises:
        MHEError: no safetensors file, one that an index names is missing, or one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors.index.json"):
        named = set(read_json_object(path).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise MHEError(f"{path} names {missing[0]!r}, which is not in the folder")
    paths = weight_paths(folder)
    if not paths:
        raise MHEError(f"folder {str(folder)!r} has no *.safetensors weights; save_pretrained writes them")
    for path in paths:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise MHEError(f"{path} is no whole safetensors file: {error}") from error
