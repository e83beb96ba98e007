"""A card and a README that is there already: its owner's text stays, only what is between our marks is ours."""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.repocard import TEMPLATE_MODELCARD_PATH

from hf_mhe.errors import MHEError
from hf_mhe.hub.card import BEGIN, END
from hf_mhe.hub.frontmatter import FrontMatter, split
from hf_mhe.hub.paths import is_local_path

# Found from the files, so that an owner who wrote something else knows better.
_GUESSED = ("library_name", "pipeline_tag")
_OF_ADAPTERS = {"library_name": "peft", "base_model_relation": "adapter"}
_UNITED = ("tags", "datasets", "metrics")
_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Every key that a card of ours may set, to find out early whether a README takes them.
_PROBE = (
    "library_name: a\npipeline_tag: a\nbase_model: a/a\nbase_model_relation: adapter\nlicense: a\ndatasets:\n- a\n"
    "language: a\nmetrics:\n- a\ntags:\n- hf_mhe\n"
)
_PROBED_RESULTS = "model-index:\n- name: a\n  results:\n  - task:\n      type: a\n"


def read_readme(path: Path, where: str) -> str:
    """The text of a README with its own line ends; a byte-order mark of UTF-8, which is no text, is taken off.

    Raises:
        MHEError: it is not UTF-8, which is all that the Hub shows, or its lines end in carriage returns alone, which
            hides its metadata from every reader.
    """
    data = path.read_bytes()
    remedy = "save it as UTF-8"
    if data.startswith(_WIDE):
        raise MHEError(f"the README in {where} is UTF-{32 if data.startswith(_WIDE[:2]) else 16}: {remedy}")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MHEError(
            f"the README in {where} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; {remedy}"
        ) from error
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise MHEError(f"the README in {where} is no text: a NUL in line {line}; {remedy}")
    if "\r" in content and "\n" not in content:
        raise MHEError(f"the lines of the README in {where} end in carriage returns alone; save it with line feeds")
    return content


def check_readme(path: Path, with_results: bool) -> None:
    """Make sure that a card, perhaps with results, can be merged into a README, before anything is written.

    Raises:
        MHEError: as of `read_readme` and `merge_readme`.
    """
    probe = _PROBE + (_PROBED_RESULTS if with_results else "")
    merge_readme(read_readme(path, str(path)), f"---\n{probe}---\n\n# a\n\n{BEGIN}\n{END}\n", str(path))


def merge_readme(existing: str | None, card: ModelCard | str, where: str, *, found: Collection[str] = ()) -> str:
    """The README to publish: the card itself, or the existing README with our section and metadata put in.

    Nothing else of the existing README changes, to the byte, but what no owner wrote: the placeholders of the template
    that peft saves with an adapter, and a path of this machine as `base_model`. And what says of an adapter that it is
    one goes where a whole model takes its place.

    Args:
        existing: the README that is there, None when there is none.
        card: what `model_card` made, or a README that has been merged with it.
        where: path or repo id of the existing README, for the message.
        found: keys of the card that were guessed and not given, for which the existing README knows better.

    Raises:
        MHEError: the existing README's metadata cannot be read, or not be added to without changing something else,
            or the README does not have our two marks once each.
    """
    if existing is None or not existing.strip():
        return str(card)
    opening, block, closing, body = split(existing)
    front = FrontMatter(block, where, opening.count("\n") + 1)
    _, new_block, _, new_body = split(str(card))
    new = FrontMatter(new_block, "the model card")
    line_break = "\r\n" if "\r\n" in existing else "\n"
    section = new_body[new_body.index(BEGIN) : new_body.index(END) + len(END)]
    at = [(body.count(mark), body.find(mark)) for mark in (BEGIN, END)]
    if [count for count, _ in at] not in ([0, 0], [1, 1]) or at[0][1] > at[1][1]:
        raise MHEError(
            f"the README in {where} must have the marks {BEGIN!r} and {END!r} once each, or neither; it has them "
            f"{at[0][0]} and {at[1][0]} times: restore or remove both"
        )
    section = section.replace("\n", line_break)
    if at[0][0]:
        body = body[: at[0][1]] + section + body[at[1][1] + len(END) :]
    elif not body.strip() or _is_template(body):
        body = new_body.replace("\n", line_break)
    else:
        gap = line_break if body.endswith(("\n", "\r")) else 2 * line_break
        body = f"{body}{gap}{section}{line_break}"
    merged = _merge_metadata(_without_adapter(_without_local_base(front), new), new, found)
    if not opening:
        opening, closing = "---" + line_break, "---" + line_break
        body = body if body.startswith(("\n", "\r")) else line_break + body
        return opening + merged.text.replace("\n", line_break) + closing + body
    joint = "" if not merged.text or merged.text.endswith(("\n", "\r")) else line_break
    return opening + merged.text + joint + closing + body


def is_only_ours(readme: str) -> bool:
    """Whether nobody wrote into a README: nothing but metadata, one title and our section."""
    text = split(readme)[3]
    if BEGIN not in text or END not in text:
        return False
    outside = text[: text.index(BEGIN)] + text[text.index(END) + len(END) :]
    lines = [line for line in outside.splitlines() if line.strip()]
    return len(lines) <= 1 and all(line.startswith("# ") for line in lines)


def _merge_metadata(old: FrontMatter, new: FrontMatter, found: Collection[str]) -> FrontMatter:
    """Lists united, results replaced one by one, other values ours; except what we only guess and the owner wrote.

    Raises:
        MHEError: a list is none, or an edit would change something else too.
    """
    try:
        return _edited(old, new, found)
    except MHEError:
        spelled_out = old.spelled_out()
        if spelled_out.text == old.text:
            raise
        return _edited(spelled_out, new, found)


def _edited(old: FrontMatter, new: FrontMatter, found: Collection[str]) -> FrontMatter:
    expected, merged = dict(old.values), old
    for key, value in new.values.items():
        present = old.values.get(key)
        if key in _UNITED and present:
            items = present if isinstance(present, list) else [present]
            if not all(isinstance(item, str) for item in items):
                raise MHEError(f"{key} of the README in {old.where} must be a list of strings; it is {present!r:.80}")
            missing = [item for item in new.sources(key) if item[0] not in items]
            expected[key] = [*items, *(text for text, _ in missing)] if missing else present
            merged = merged.extend(key, [source for _, source in missing]) if missing else merged
        elif key == "model-index" and present and not _has_no_results(present):
            merged, expected[key] = _merge_index(merged, new)
        elif present != value and not (present and (key in _GUESSED or key in found)):
            expected[key] = value
            merged = merged.take(key, new)
    if merged.values != expected:
        changed = sorted(key for key in merged.values if merged.values[key] != expected.get(key))
        raise MHEError(
            f"the metadata of the README in {old.where} cannot be added to without changing {', '.join(changed)}: "
            "write it with one key on each line"
        )
    return merged


def _has_no_results(index: object) -> bool:
    """Whether a `model-index` names models and not one result, as Trainer writes it beside every model it pushes."""
    return isinstance(index, list) and all(isinstance(model, dict) and model.get("results") == [] for model in index)


def _merge_index(old: FrontMatter, new: FrontMatter) -> tuple[FrontMatter, list[Any]]:
    """The old results, less those of a task and data set that the new ones are of, and the new results.

    Raises:
        MHEError: the old results are no list as the Hub wants it.
    """

    def of(result: dict[str, Any]) -> tuple[Any, ...]:
        dataset = result.get("dataset", {})
        return (result.get("task", {}).get("type"), *(dataset.get(key) for key in ("type", "config", "split")))

    key = "model-index"
    models = copy.deepcopy(old.values[key])
    try:
        fresh = [result for model in new.values[key] for result in model.get("results", [])]
        added = [result for result in fresh if all(result not in model["results"] for model in models)]
        replaced = {of(result) for result in fresh}
        stale = [
            (position, index)
            for position, model in enumerate(models)
            for index, result in enumerate(model["results"])
            if of(result) in replaced and result not in fresh
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise MHEError(
            f"model-index of the README in {old.where} must be a list of models, each with its list of results"
        ) from error
    if not added and not stale:
        return old, models
    written = dict(zip(map(id, fresh), new.results(), strict=True))
    texts = [written[id(result)] for result in added]
    merged = old.replace_results(stale, texts)
    places = stale[: len(added)]
    for (position, index), result in zip(places, added, strict=False):
        models[position]["results"][index] = result
    for position, index in reversed(stale[len(places) :]):
        del models[position]["results"][index]
    models[0]["results"] += added[len(places) :]
    return merged, models


def _without_adapter(front: FrontMatter, new: FrontMatter) -> FrontMatter:
    """Metadata that does not say of a whole model that it is an adapter, as one that was there before it did."""
    if new.values.get("library_name") == _OF_ADAPTERS["library_name"]:
        return front
    for key, value in _OF_ADAPTERS.items():
        if front.values.get(key) == value:
            front = front.without(key)
    return front


def _without_local_base(front: FrontMatter) -> FrontMatter:
    """Metadata without a base model that is a path of this machine, which peft writes and the Hub refuses."""
    base = front.values.get("base_model")
    if isinstance(base, str) and is_local_path(base):
        front = front.without("base_model")
    tags = front.values.get("tags")
    local = [
        tag
        for tag in (tags if isinstance(tags, list) else [])
        if isinstance(tag, str) and tag.startswith("base_model:") and is_local_path(tag.split(":", 2)[-1])
    ]
    return front.without("tags", local) if local else front


def _is_template(body: str) -> bool:
    """Whether a README's text is the empty template of huggingface_hub, as peft saves it with every adapter."""
    template = Path(TEMPLATE_MODELCARD_PATH).read_text(encoding="utf-8")
    filled = re.sub(r'\{\{[^}]*default\("([^"]*)"[^}]*\}\}', r"\1", template)
    known = {line.strip() for line in filled.splitlines()} | {"### Framework versions"}
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    quantized = "The following `bitsandbytes` quantization config was used during training:"
    known |= {quantized, "## Training procedure"} if quantized in lines else set()
    item = re.compile(r"- \w+: .*" if quantized in lines else r"- PEFT [\w.+]+")
    rest = [line for line in lines if line not in known and not re.fullmatch(r"- PEFT [\w.+]+", line)]
    return "# Model Card for Model ID" in lines and all(item.fullmatch(line) for line in rest)
