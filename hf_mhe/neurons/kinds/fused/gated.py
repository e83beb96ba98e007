"""Fused projections of gated feed-forward layers in transformers: which half is the gate.

The gate is the half that goes through the activation function, whatever a model calls it; the other half is up.
"""

from __future__ import annotations

from typing import Any

from hf_mhe.neurons.kinds.fused.split import Division, Part, divides


def _halves(layer: Any, *names: str) -> Division:
    rows = layer.out_features // 2
    return Division(tuple(Part(name, rows) for name in names))


@divides(
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
def gate_up(module: Any) -> dict[str, Division]:
    """`gate_up_proj`: gate, then up."""
    return {"gate_up_proj": _halves(module.gate_up_proj, "gate", "up")}


@divides("phi4_multimodal.Phi4MultimodalAudioMLP")
def up_gate(module: Any) -> dict[str, Division]:
    """`gate_up_proj`, despite its name: up, then gate."""
    return {"gate_up_proj": _halves(module.gate_up_proj, "up", "gate")}


@divides("modernbert.ModernBertMLP", "modernbert_decoder.ModernBertDecoderMLP")
def modernbert(module: Any) -> dict[str, Division]:
    """`Wi`: the activated half, then the other, which the model calls gate."""
    return {"Wi": _halves(module.Wi, "gate", "up")}


@divides(
    "granitemoe_swa.GraniteMoeSWAMLP", "granitemoehybrid.GraniteMoeHybridMLP", "granitemoeshared.GraniteMoeSharedMLP"
)
def granite(module: Any) -> dict[str, Division]:
    """`input_linear` of the shared expert: gate, then up."""
    return {"input_linear": _halves(module.input_linear, "gate", "up")}


@divides("moonshine.MoonshineDecoderMLP", "moonshine_streaming.MoonshineStreamingDecoderMLP")
def moonshine(module: Any) -> dict[str, Division]:
    """`fc1`: up, then gate."""
    return {"fc1": _halves(module.fc1, "up", "gate")}


@divides("kyutai_speech_to_text.KyutaiSpeechToTextGatingMLP", "moshi.MoshiGatingMLP")
def moshi(module: Any) -> dict[str, Division]:
    """`fc1`, viewed as (2, half): gate, then up."""
    return {"fc1": _halves(module.fc1, "gate", "up")}


@divides("aya_vision.AyaVisionMultiModalProjector", "cohere2_vision.Cohere2VisionMultiModalProjector")
def cohere_projector(module: Any) -> dict[str, Division]:
    """`linear_1`: up, then gate."""
    return {"linear_1": _halves(module.linear_1, "up", "gate")}


@divides("clvp.ClvpGatedLinearUnit")
def clvp(module: Any) -> dict[str, Division]:
    """`proj`: up, then gate."""
    return {"proj": _halves(module.proj, "up", "gate")}


@divides("jetmoe.JetMoeMoE")
def jetmoe(module: Any) -> dict[str, Division]:
    """`input_linear` of each expert: gate, then up."""
    rows = module.hidden_size
    return {"input_linear": Division((Part("gate", rows), Part("up", rows)))}
