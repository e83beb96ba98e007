"""Fused projections of gated feed-forward layers in transformers: which half is the gate.

The gate is the half that goes through the activation function, whatever a model calls it; the other half is up.
"""

from __future__ import annotations

from typing import Any

from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit, splits


def _halves(layer: Any, *names: str) -> RowSplit:
    rows = layer.out_features // 2
    return RowSplit(tuple(Projection(name, rows) for name in names))


@splits(
    "dia.DiaMLP",
    "dots3_note.Dots3NoteAudioMLP",
    "esmfold2.EsmFold2SwiGLU",
    "glm.GlmMLP",
    "glm4.Glm4MLP",
    "glm4v.Glm4vTextMLP",
    "glm_image.GlmImageTextMLP",
    "glm_ocr.GlmOcrTextMLP",
    "minimax_m3_vl.MiniMaxM3VLDenseMLP",
    "phi3.Phi3MLP",
    "phi4_multimodal.Phi4MultimodalMLP",
    "zamba2.Zamba2MLP",
)
def gate_up(module: Any) -> dict[str, RowSplit]:
    """`gate_up_proj`: gate, then up."""
    return {"gate_up_proj": _halves(module.gate_up_proj, "gate", "up")}


@splits("phi4_multimodal.Phi4MultimodalAudioMLP")
def up_gate(module: Any) -> dict[str, RowSplit]:
    """`gate_up_proj`, despite its name: up, then gate."""
    return {"gate_up_proj": _halves(module.gate_up_proj, "up", "gate")}


@splits("modernbert.ModernBertMLP", "modernbert_decoder.ModernBertDecoderMLP")
def modernbert(module: Any) -> dict[str, RowSplit]:
    """`Wi`: the activated half, then the other, which the model calls gate."""
    return {"Wi": _halves(module.Wi, "gate", "up")}


@splits(
    "granitemoe_swa.GraniteMoeSWAMLP", "granitemoehybrid.GraniteMoeHybridMLP", "granitemoeshared.GraniteMoeSharedMLP"
)
def granite(module: Any) -> dict[str, RowSplit]:
    """`input_linear` of the shared expert: gate, then up."""
    return {"input_linear": _halves(module.input_linear, "gate", "up")}


@splits("moonshine.MoonshineDecoderMLP", "moonshine_streaming.MoonshineStreamingDecoderMLP")
def moonshine(module: Any) -> dict[str, RowSplit]:
    """`fc1`: up, then gate."""
    return {"fc1": _halves(module.fc1, "up", "gate")}


@splits("kyutai_speech_to_text.KyutaiSpeechToTextGatingMLP", "moshi.MoshiGatingMLP")
def moshi(module: Any) -> dict[str, RowSplit]:
    """`fc1`, viewed as (2, half): gate, then up."""
    return {"fc1": _halves(module.fc1, "gate", "up")}


@splits("aya_vision.AyaVisionMultiModalProjector", "cohere2_vision.Cohere2VisionMultiModalProjector")
def cohere_projector(module: Any) -> dict[str, RowSplit]:
    """`linear_1`: up, then gate."""
    return {"linear_1": _halves(module.linear_1, "up", "gate")}


@splits("clvp.ClvpGatedLinearUnit")
def clvp(module: Any) -> dict[str, RowSplit]:
    """`proj`: up, then gate."""
    return {"proj": _halves(module.proj, "up", "gate")}


@splits("jetmoe.JetMoeMoE")
def jetmoe(module: Any) -> dict[str, RowSplit]:
    """`input_linear` of each expert: gate, then up."""
    rows = module.hidden_size
    return {"input_linear": RowSplit((Projection("gate", rows), Projection("up", rows)))}
