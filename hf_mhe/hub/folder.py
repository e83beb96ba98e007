"""What a folder on disk holds: whether it is a publishable model, of which library, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_mhe.errors import MHEError
from hf_mhe.hub.finite import StoredModel
from hf_mhe.hub.loaders import published_files
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
    """

    library: str | None = None
    architecture: str | None = None
    auto_class: str | None = None
    task: str | None = None


def read_facts(folder: Path) -> ModelFacts:
    """The facts of a model folder.

    Raises:
        MHEError: the folder has no config file of a library, or one that is not JSON.
    """
    library = next((name for file, name in _LIBRARIES if (folder / file).is_file()), None)
    config = folder / "config.json"
    if not config.is_file():
        if library is None:
            known = ", ".join(["config.json", *(file for file, _ in _LIBRARIES)])
            raise MHEError(f"folder {str(folder)!r} is no saved model: it has none of {known}")
        return ModelFacts(library)
    content = read_json_object(config)
    if library is None:
        library = "diffusers" if "_diffusers_version" in content else None
        library = "transformers" if "model_type" in content else library
    architectures = content.get("architectures") or [None]
    return facts_of(library, architectures[0] if isinstance(architectures, list) else None)


def facts_of(library: str | None, architecture: str | None) -> ModelFacts:
    """The facts that follow from a library and the name of a model's class."""
    if library != "transformers" or not isinstance(architecture, str):
        return ModelFacts(library, architecture if isinstance(architecture, str) else None)
    for ending, auto_class, task in _TASKS:
        if architecture.endswith(ending):
            return ModelFacts(library, architecture, auto_class, task)
    return ModelFacts(library, architecture, "AutoModel" if architecture.endswith("Model") else architecture)


def check_weights(folder: Path) -> None:
    """Make sure that a folder's weights are safetensors, all there, and finite.

    Raises:
        MHEError: no safetensors file, a file that cannot be read, or a weight with a NaN or an infinity (named).
    """
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors.index.json"):
        named = set(read_json_object(path).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise MHEError(f"{path} names {missing[0]!r}, which is not in the folder")
    paths = [path for path in published_files(folder) if path.suffix == ".safetensors"]
    if not paths:
        raise MHEError(f"folder {str(folder)!r} has no *.safetensors weights; save_pretrained writes them")
    models: dict[Path, StoredModel] = {}
    for path in paths:
        model = models.setdefault(path.parent, StoredModel(path.parent))
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                    model.check(path, name, weights.get_tensor(name))
        except SafetensorError as error:
            raise MHEError(f"{path} is no whole safetensors file: {error}") from error
