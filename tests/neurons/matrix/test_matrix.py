"""Of every model type that transformers builds, each parameter is in a neuron group, or left out for a reason.

The quick selection is part of every run, the whole of `pytest -m matrix`; the table comes at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transformers

from hf_mhe.neurons import neuron_groups
from tests.neurons.matrix.build import build
from tests.neurons.matrix.heads import head_faults
from tests.neurons.matrix.row import Row, row_of
from tests.neurons.matrix.table import PROPERTY, unbuilt
from tests.neurons.matrix.types import model_types, selection

Record = Callable[[str, object], None]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", selection(40))
def test_a_selection(model_type: str) -> None:
    """If this failed, rows of some kind of model would be counted twice, lost in silence, or have the wrong role."""
    row = row_of(model_type, most_classes=2)
    if not row.built and all(reason.startswith("ImportError") for reason in row.missing.values()):
        pytest.skip("; ".join(row.missing.values()))
    assert row.built, row.missing
    _check(row)


HEADS = ["DFineForObjectDetection", "PerceiverForSequenceClassification", "UperNetForSemanticSegmentation",
         "Wav2Vec2ForXVector"]  # fmt: skip


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", HEADS)
def test_heads_in_unusual_places(name: str) -> None:
    """If this failed, class vectors inside the base model, in a loss or below a decoder would be mirrored."""
    cls = getattr(transformers, name)
    assert not [*head_faults(cls, cls.config_class)]
    assert any(group.role == "output" for group in neuron_groups(build(cls, cls.config_class, num_labels=7)))


@pytest.mark.parametrize(("name", "head"), [
    ("BarkSemanticModel", "lm_head"),
    ("CsmDepthDecoderForCausalLM", "codebooks_head.weight.0"),
    ("PPOCRV5MobileRecForTextRecognition", "head.head"),
    ("UniSpeechForPreTraining", "ctc_proj"),
])  # fmt: skip
def test_heads_of_other_vocabularies(name: str, head: str) -> None:
    """If this failed, the class vectors of codes of sound, of characters and of phonemes would be mirrored."""
    cls = getattr(transformers, name)
    outputs = [group.name for group in neuron_groups(build(cls, cls.config_class)) if group.role == "output"]
    assert outputs[0] == head


@pytest.mark.matrix
@pytest.mark.parametrize("model_type", model_types())
def test_every_type(model_type: str, record_property: Record) -> None:
    """If this failed, the same for a model type that transformers knows by now."""
    row = row_of(model_type)
    record_property(PROPERTY, (row.plain(), len(model_types())))
    if not row.built:
        pytest.skip("; ".join(f"{cls}: {reason}" for cls, reason in row.missing.items()))
    _check(row)


def _check(row: Row) -> None:
    assert not row.faults, "\n".join(row.faults)


def test_too_few_types_are_a_failure() -> None:
    """If this failed, a release of transformers of which nothing builds would leave the matrix green."""
    rows = [Row(str(i), built=["Model"] if i < 50 else []).plain() for i in range(100)]
    assert unbuilt(rows, 100) == "only 50 of 100 model types were built, fewer than 85%"
    assert unbuilt(rows[:50], 100) is None
    assert unbuilt(rows[:50], 50) is None
