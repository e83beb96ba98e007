"""Attention's fused projections in transformers: which rows are queries, keys and values, read as the forward does.

Each splitter repeats the split in the forward of the classes it is registered for; sizes are the module's attributes.
"""

from __future__ import annotations

from typing import Any

from hf_mhe.neurons.kinds.fused.split import Projection, RowSplit, splits


def _qkv(q: int, k: int, head: int) -> RowSplit:
    """Queries, keys and values below each other."""
    return RowSplit((Projection("q", q, head), Projection("k", k, head), Projection("v", k, head)))


def _interleaved(heads: int, head: int) -> RowSplit:
    """Head by head: its queries, its keys, its values."""
    return RowSplit((Projection("q", head, head), Projection("k", head, head), Projection("v", head, head)), heads)


def _kv(layer: Any, heads: int) -> RowSplit:
    """Keys above values, of one size."""
    rows = layer.out_features // 2
    return RowSplit((Projection("k", rows, rows // heads), Projection("v", rows, rows // heads)))


@splits("gpt2.GPT2Attention", "decision_transformer.DecisionTransformerGPT2Attention", "imagegpt.ImageGPTAttention")
def gpt2(module: Any) -> dict[str, RowSplit]:
    """`c_attn`, a transformers Conv1D: thirds, or keys and values alone in cross-attention."""
    size, head = module.split_size, module.head_dim
    both = _qkv(size, size, head)
    return {
        "c_attn": RowSplit(both.projections[1:]) if module.is_cross_attention else both,
        "q_attn": RowSplit((Projection("", size, head),)),
    }


@splits("openai.Attention")
def openai(module: Any) -> dict[str, RowSplit]:
    """GPT's `c_attn`: thirds."""
    return {"c_attn": _qkv(module.split_size, module.split_size, module.split_size // module.n_head)}


@splits("gpt_bigcode.GPTBigCodeAttention")
def gpt_bigcode(module: Any) -> dict[str, RowSplit]:
    """`c_attn`: with one key and value head all queries first, else head by head."""
    if module.is_cross_attention:
        return {}
    if module.multi_query:
        return {"c_attn": _qkv(module.embed_dim, module.kv_dim, module.head_dim)}
    return {"c_attn": _interleaved(module.num_heads, module.head_dim)}


@splits("bark.BarkSelfAttention")
def bark(module: Any) -> dict[str, RowSplit]:
    """`att_proj`: thirds."""
    return {"att_proj": _qkv(module.embed_dim, module.embed_dim, module.head_dim)}


@splits("mpt.MptAttention")
def mpt(module: Any) -> dict[str, RowSplit]:
    """`Wqkv`: thirds."""
    return {"Wqkv": _qkv(module.hidden_size, module.hidden_size, module.head_dim)}


@splits("dbrx.DbrxAttention")
def dbrx(module: Any) -> dict[str, RowSplit]:
    """`Wqkv`: queries, then the fewer keys and values."""
    return {"Wqkv": _qkv(module.hidden_size, module.num_key_value_heads * module.head_dim, module.head_dim)}


@splits("modernbert.ModernBertAttention")
def modernbert(module: Any) -> dict[str, RowSplit]:
    """`Wqkv`: thirds."""
    rows = module.config.num_attention_heads * module.head_dim
    return {"Wqkv": _qkv(rows, rows, module.head_dim)}


@splits("phi3.Phi3Attention", "phi4_multimodal.Phi4MultimodalAttention")
def phi3(module: Any) -> dict[str, RowSplit]:
    """`qkv_proj`: queries, then the fewer keys and values."""
    queries = module.config.num_attention_heads * module.head_dim
    return {"qkv_proj": _qkv(queries, module.num_key_value_heads * module.head_dim, module.head_dim)}


@splits("exaone4_5.Exaone4_5_VisionAttention")
def exaone_vision(module: Any) -> dict[str, RowSplit]:
    """`qkv`: queries, then the fewer keys and values."""
    return {"qkv": _qkv(module.q_dim, module.kv_dim, module.head_dim)}


@splits(
    "blip.BlipAttention",
    "blip_2.Blip2Attention",
    "cohere_compass.CohereCompassVisionAttention",
    "dots3_note.Dots3NoteVisionAttention",
    "ernie4_5_vl_moe.Ernie4_5_VLMoeVisionAttention",
    "florence2.Florence2VisionWindowAttention",
    "glm4v.Glm4vVisionAttention",
    "glm4v_moe.Glm4vMoeVisionAttention",
    "glm5_next.Glm5NextVisionAttention",
    "glm_image.GlmImageVisionAttention",
    "glm_ocr.GlmOcrVisionAttention",
    "hiera.HieraMaskUnitAttention",
    "instructblip.InstructBlipAttention",
    "instructblipvideo.InstructBlipVideoAttention",
    "mgp_str.MgpstrAttention",
    "pp_ocrv5_mobile_rec.PPOCRV5MobileRecAttention",
    "pp_ocrv5_server_rec.PPOCRV5ServerRecAttention",
    "pp_ocrv6_small_rec.PPOCRV6SmallRecAttention",
    "qwen2_5_vl.Qwen2_5_VLVisionAttention",
    "qwen2_vl.VisionAttention",
    "qwen3_5.Qwen3_5VisionAttention",
    "qwen3_5_moe.Qwen3_5MoeVisionAttention",
    "qwen3_omni_moe.Qwen3OmniMoeVisionAttention",
    "qwen3_vl.Qwen3VLVisionAttention",
    "qwen3_vl_moe.Qwen3VLMoeVisionAttention",
    "qwen4_exp.Qwen4ExpVisionAttention",
    "timesformer.TimesformerSelfAttention",
    "vitdet.VitDetAttention",
)
def vision(module: Any) -> dict[str, RowSplit]:
    """`qkv`, reshaped to (3, num_heads, head): thirds."""
    rows = module.qkv.out_features // 3
    return {"qkv": _qkv(rows, rows, rows // module.num_heads)}


@splits(
    "deepseek_ocr2.DeepseekOcr2SamVisionAttention",
    "got_ocr2.GotOcr2VisionAttention",
    "pp_formulanet.PPFormulaNetVisionAttention",
    "sam.SamVisionAttention",
    "sam2.Sam2MultiScaleAttention",
    "sam_hq.SamHQVisionAttention",
    "seggpt.SegGptAttention",
    "slanext.SLANeXtVisionAttention",
    "unlimited_ocr.UnlimitedOcrSamVisionAttention",
)
def segment_anything(module: Any) -> dict[str, RowSplit]:
    """`qkv`, reshaped to (3, num_attention_heads, head): thirds."""
    rows = module.qkv.out_features // 3
    return {"qkv": _qkv(rows, rows, rows // module.num_attention_heads)}


@splits("florence2.Florence2VisionChannelAttention")
def florence2_channel(module: Any) -> dict[str, RowSplit]:
    """`qkv`, reshaped to (3, groups, channels): thirds."""
    return {"qkv": _qkv(module.dim, module.dim, module.dim // module.groups)}


@splits("layoutlmv2.LayoutLMv2SelfAttention")
def layoutlmv2(module: Any) -> dict[str, RowSplit]:
    """`qkv_linear`, where the config fuses: thirds."""
    return {"qkv_linear": _qkv(module.all_head_size, module.all_head_size, module.attention_head_size)}


@splits("gpt_neox.GPTNeoXAttention")
def gpt_neox(module: Any) -> dict[str, RowSplit]:
    """`query_key_value`, viewed as (heads, 3 · head): head by head."""
    return {"query_key_value": _interleaved(module.config.num_attention_heads, module.head_size)}


@splits("gpt_neox_japanese.GPTNeoXJapaneseAttention")
def gpt_neox_japanese(module: Any) -> dict[str, RowSplit]:
    """`query_key_value`, viewed as (heads, 3 · head): head by head."""
    return {"query_key_value": _interleaved(module.num_attention_heads, module.head_size)}


@splits("bloom.BloomAttention", "persimmon.PersimmonAttention")
def bloom(module: Any) -> dict[str, RowSplit]:
    """`query_key_value`, viewed as (heads, 3, head): head by head."""
    return {"query_key_value": _interleaved(module.num_heads, module.head_dim)}


@splits("falcon.FalconAttention")
def falcon(module: Any) -> dict[str, RowSplit]:
    """`query_key_value` in its three layouts.

    New decoder: for each key-value head its queries, one key, one value; multi-query: all queries, one key, one value;
    else head by head.
    """
    head = module.head_dim
    if module.new_decoder_architecture:
        queries = module.num_heads // module.num_kv_heads * head
        parts = Projection("q", queries, head), Projection("k", head, head), Projection("v", head, head)
        return {"query_key_value": RowSplit(parts, module.num_kv_heads)}
    if module.multi_query:
        return {"query_key_value": _qkv(module.num_heads * head, head, head)}
    return {"query_key_value": _interleaved(module.num_heads, head)}


@splits("minimax.MiniMaxLightningAttention")
def minimax_lightning(module: Any) -> dict[str, RowSplit]:
    """`qkv_proj`, viewed as (heads, 3 · head): head by head."""
    return {"qkv_proj": _interleaved(module.num_attention_heads, module.head_dim)}


@splits("deberta.DisentangledSelfAttention")
def deberta(module: Any) -> dict[str, RowSplit]:
    """`in_proj`, viewed as (heads, 3 · head): head by head."""
    return {"in_proj": _interleaved(module.num_attention_heads, module.attention_head_size)}


@splits("esm/esmfold.EsmFoldSelfAttention")
def esmfold(module: Any) -> dict[str, RowSplit]:
    """`proj`, viewed as (heads, 3 · head): head by head."""
    return {"proj": _interleaved(module.num_heads, module.head_width)}


@splits("codegen.CodeGenAttention")
def codegen(module: Any) -> dict[str, RowSplit]:
    """`qkv_proj`: in each of 4 blocks (the cores it was trained on) queries, values, keys, in this order."""
    head = module.head_dim
    rows = head * module.num_attention_heads // 4
    return {
        "qkv_proj": RowSplit(
            (Projection("q", rows, head), Projection("v", rows, head), Projection("k", rows, head)), 4
        )
    }


@splits("jetmoe.JetMoeAttention")
def jetmoe(module: Any) -> dict[str, RowSplit]:
    """`kv_proj`: keys, then values."""
    return {"kv_proj": _kv(module.kv_proj, module.num_key_value_heads)}


@splits("granite_speech.GraniteSpeechConformerAttention", "granite_speech_plus.GraniteSpeechPlusConformerAttention")
def granite_speech(module: Any) -> dict[str, RowSplit]:
    """`to_kv`: keys, then values."""
    return {"to_kv": _kv(module.to_kv, module.num_heads)}


@splits("evolla.EvollaSequenceCompressorAttention")
def evolla(module: Any) -> dict[str, RowSplit]:
    """`to_kv`: keys, then values."""
    return {"to_kv": _kv(module.to_kv, module.heads)}


@splits(
    "axk1.AXK1Attention",
    "axk2.AXK2Attention",
    "bailing_hybrid.BailingHybridAttention",
    "deepseek_v2.DeepseekV2Attention",
    "deepseek_v3.DeepseekV3Attention",
    "deepseek_v32.DeepseekV32Attention",
    "dots3_note.Dots3NoteTextAttention",
    "glm4_moe_lite.Glm4MoeLiteAttention",
    "glm5_next.Glm5NextTextAttention",
    "glm_moe_dsa.GlmMoeDsaAttention",
    "hy_v4.HYV4Attention",
    "hy_v4_vl.HYV4VLAttention",
    "kimi_linear.KimiLinearAttention",
    "longcat_flash.LongcatFlashMLA",
    "minicpm3.MiniCPM3Attention",
    "mistral4.Mistral4Attention",
    "mistral_large4.MistralLarge4TextAttention",
    "youtu.YoutuAttention",
)
def latent_attention(module: Any) -> dict[str, RowSplit]:
    """Multi-head latent attention: `kv_a_proj_with_mqa` is the latent, then the one key with position.

    `kv_b_proj` is head by head the keys' part without position, then the values.
    """
    nope, value = module.qk_nope_head_dim, module.v_head_dim
    found = {
        "kv_a_proj_with_mqa": RowSplit(
            (Projection("latent", module.kv_lora_rank), Projection("k_rope", module.qk_rope_head_dim))
        ),
        "kv_b_proj": RowSplit((Projection("k", nope, nope), Projection("v", value, value)), module.num_heads),
    }
    queries = RowSplit((Projection("", module.num_heads * module.qk_head_dim, module.qk_head_dim),))
    return found | dict.fromkeys(("q_proj", "q_b_proj"), queries)


@splits(
    "qwen3_5.Qwen3_5Attention",
    "qwen3_5_moe.Qwen3_5MoeAttention",
    "qwen3_next.Qwen3NextAttention",
    "qwen4_exp.Qwen4ExpTextAttention",
)
def gated_queries(module: Any) -> dict[str, RowSplit]:
    """`q_proj`, viewed as (heads, 2 · head): head by head its queries and its output gates."""
    head, config = module.head_dim, module.config
    keys = RowSplit((Projection("", config.num_key_value_heads * head, head),))
    gated = RowSplit((Projection("q", head, head), Projection("gate", head, head)), config.num_attention_heads)
    return {"q_proj": gated, "k_proj": keys, "v_proj": keys}


@splits("qwen3_next.Qwen3NextGatedDeltaNet")
def gated_delta_net_interleaved(module: Any) -> dict[str, RowSplit]:
    """`in_proj_qkvz` and `in_proj_ba`: for each key head its queries, keys, values and output gates; b and a."""
    k, v, ratio = module.head_k_dim, module.head_v_dim, module.num_v_heads // module.num_k_heads
    mixed = Projection("q", k, k), Projection("k", k, k), Projection("v", ratio * v, v), Projection("z", ratio * v, v)
    return {
        "in_proj_qkvz": RowSplit(mixed, module.num_k_heads),
        "in_proj_ba": RowSplit((Projection("b", ratio), Projection("a", ratio)), module.num_k_heads),
    }


@splits(
    "lara_mini.LaraMiniGatedDeltaNet",
    "qwen3_5.Qwen3_5GatedDeltaNet",
    "qwen3_5_moe.Qwen3_5MoeGatedDeltaNet",
    "qwen4_exp.Qwen4ExpTextGatedDeltaNet",
)
def gated_delta_net(module: Any) -> dict[str, RowSplit]:
    """`in_proj_qkv`: queries, keys, values."""
    k, v = module.head_k_dim, module.head_v_dim
    return {
        "in_proj_qkv": RowSplit(
            (
                Projection("q", module.key_dim, k),
                Projection("k", module.key_dim, k),
                Projection("v", module.value_dim, v),
            )
        )
    }
