"""The lines of a card that a reader runs: to load the model, and to repeat its measurement. None that cannot run."""

from __future__ import annotations

import importlib
import json
from typing import Any

from hf_mhe.analysis import EnergyReport
from hf_mhe.hub.adapter import Adapter
from hf_mhe.hub.folder import ModelFacts
from hf_mhe.hub.markdown import code, number


def loading(facts: ModelFacts, where: str) -> str | None:
    """The section on how to load, with the lines for the model's library; None where nothing is known."""
    lines, remark = _lines(facts, where)
    parts = ["### How to load", *([remark] if remark else []), *([_python(lines)] if lines else [])]
    return "\n\n".join(parts) if len(parts) > 1 else None


def verifying(after: EnergyReport, facts: ModelFacts, where: str) -> str:
    """How anyone repeats the measurement, and what must come out; for an adapter, how somebody who has its base does.

    An adapter alone is not measured, so that the lines load it on its base. There is no claim where the reader
    cannot have the same base: it is named nowhere, or was quantized as it was measured.
    """
    title, result = "### How to verify", f"a mean score of **{number(after.summary.mean_score)}**"
    counted = f"{after.summary.groups} groups and {after.summary.neurons} neurons"
    potential = _potential(after)
    arguments = "".join(f", {name}={json.dumps(value)}" for name, value in potential.items())
    if facts.adapter is not None:
        together = "The weights that were measured are those that the base model and the adapter make together."
        lines = _adapter_lines(facts.adapter, where, facts.adapter.base_dtype)
        call = f"`hf_mhe.analyze(model{arguments})`"
        if lines is None or after.left_out:
            return f"{title}\n\n{together} {call}, with the adapter on its base, measures them again."
        if not facts.adapter.as_published:
            return (
                f"{title}\n\n{together} The base was not as the Hub has it, but quantized or with other adapters, "
                f"so that {call} after the lines above gives other numbers."
            )
        lines = f"import hf_mhe\n{lines}\nreport = hf_mhe.analyze(model{arguments})\nprint(report.summary.mean_score)"
        return f"{title}\n\n{together}\n\n{_python(lines)}\n\nThis must give {result} over {counted}."
    if after.left_out:
        return (
            f"{title}\n\nThe report is of these {len(after.groups)} groups; the others were left out by patterns.\n\n"
            "```python\nimport hf_mhe\nfrom hf_mhe.hub import load_report\n\n"
            f'published = load_report("{where}")\n'
            'potential = {"s": published.s, "distance": published.distance, "space": published.space}\n'
            f'measured = hf_mhe.analyze("{where}", **potential)\n'
            "print(max(abs(measured[group.name].energy - group.energy) for group in published.groups))\n```\n\n"
            "The largest difference must be that of rounding."
        )
    if not facts.is_repeatable:
        return (
            f"{title}\n\nThe model was measured in memory: `hf_mhe.analyze(model{arguments})`. The files alone do not "
            "show all of its groups to whoever has not the code of its class."
        )
    options = "".join(f" --{name} {value}" for name, value in potential.items())
    lines = f'import hf_mhe\n\nreport = hf_mhe.analyze("{where}"{arguments})\nprint(report.summary.mean_score)'
    return (
        f"{title}\n\n```bash\nhf-mhe analyze {where}{options}\n```\n\n{_python(lines)}\n\n"
        f"Both must give {result} over {counted}."
    )


def _potential(report: EnergyReport) -> dict[str, Any]:
    """The settings of a report that are not the default ones."""
    s: float | int = int(report.s) if float(report.s).is_integer() else report.s
    settings = {"s": (s, 2), "distance": (report.distance, "euclidean"), "space": (report.space, "full")}
    return {name: value for name, (value, usual) in settings.items() if value != usual}


def _lines(facts: ModelFacts, where: str) -> tuple[str | None, str | None]:
    """The lines that load a model, and what a reader has to know first; each None where there is nothing to say."""
    if facts.adapter is not None:
        return _adapter_loading(facts.adapter, where)
    if facts.library == "transformers":
        return _transformers_lines(facts, where)
    if facts.library == "diffusers" and _has("diffusers", facts.architecture):
        name = "DiffusionPipeline" if facts.is_pipeline else facts.architecture
        return f'from diffusers import {name}\n\nmodel = {name}.from_pretrained("{where}")', None
    if facts.library == "sentence-transformers" and _has("sentence_transformers", facts.architecture):
        name = facts.architecture
        return f'from sentence_transformers import {name}\n\nmodel = {name}("{where}")', None
    if facts.library == "timm" and _timm_has(facts.architecture):
        return f'import timm\n\nmodel = timm.create_model("hf-hub:{where}", pretrained=True)', None
    if facts.library is None and facts.weights is not None:
        lines = (
            "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n\n"
            f'state = load_file(hf_hub_download("{where}", "{facts.weights}"))'
        )
        return lines, "The weights by their names, for `load_state_dict` of a model of the class that they are of."
    return None, None


def _transformers_lines(facts: ModelFacts, where: str) -> tuple[str | None, str | None]:
    name = facts.auto_class
    if name is not None and facts.code is not None:
        lines = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{where}", trust_remote_code=True)'
        return lines, (
            f"This model runs code that is not part of transformers, from {code(facts.code)}. Read it before you pass "
            "`trust_remote_code=True`, which lets it run on your machine."
        )
    if name is not None:
        return f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{where}")', None
    if facts.architecture is None:
        return None, None
    return None, (
        f"The model is of the class {code(facts.architecture)}, which is neither in transformers nor in this "
        f'repository: once its code is imported, `{facts.architecture}.from_pretrained("{where}")` loads it.'
    )


def _adapter_loading(adapter: Adapter, where: str) -> tuple[str | None, str | None]:
    lines = _adapter_lines(adapter, where)
    inside = f', subfolder="{adapter.folder}"' if adapter.folder else ""
    call = f'`PeftModel.from_pretrained(base, "{where}"{inside})`'
    if lines is None:
        return None, (
            "This is an adapter, to be put on the model that it was trained on: with that one loaded as `base`, "
            f"{call} does it." + ("" if adapter.base else " The base came from a folder and has no name on the Hub.")
        )
    more = [f'model.load_adapter("{where}", "{name}", subfolder="{name}")' for name in adapter.others]
    return "\n".join([lines.rstrip("\n"), *more]), None


def _adapter_lines(adapter: Adapter, where: str, dtype: str | None = None) -> str | None:
    """The lines that load an adapter on its base; None where no reader could run them."""
    name = adapter.base_class
    if adapter.base is None or name is None or not _has("transformers", name):
        return None
    options = "" if adapter.revision is None else f', revision="{adapter.revision}"'
    options += "" if dtype is None else f', dtype="{dtype}"'
    if adapter.labels is not None:
        options += f", num_labels={adapter.labels}, ignore_mismatched_sizes=True"
    inside = f', subfolder="{adapter.folder}"' if adapter.folder else ""
    resized = "" if adapter.vocabulary is None else f"base.resize_token_embeddings({adapter.vocabulary})\n"
    return (
        f"from peft import PeftModel\nfrom transformers import {name}\n\n"
        f'base = {name}.from_pretrained("{adapter.base}"{options})\n{resized}'
        f'model = PeftModel.from_pretrained(base, "{where}"{inside})\n'
    )


def _has(package: str, name: str | None) -> bool:
    """Whether a package has a class of that name, so that a line which imports it runs."""
    try:
        return name is not None and isinstance(getattr(importlib.import_module(package), name, None), type)
    except ImportError:
        return False


def _timm_has(architecture: str | None) -> bool:
    try:
        return architecture is not None and bool(importlib.import_module("timm").is_model(architecture))
    except ImportError:
        return False


def _python(lines: str) -> str:
    return f"```python\n{lines}\n```"
