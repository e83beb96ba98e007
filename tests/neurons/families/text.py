"""Encoders and decoders of text, one feed-forward layer a block."""

from __future__ import annotations

from tests.neurons.families.family import BLOCK, GPT, LLAMA, QKV, TEXT, TOKENS, Family, apart, fused

_HEAD = frozenset({"lm_head"})
_BERT = apart("query", "key", "value")


def _falcon(**layout: object) -> Family:
    arguments = {**BLOCK, "vocab_size": 60, "tie_word_embeddings": False, **TOKENS, **layout}
    return Family("FalconForCausalLM", "FalconConfig", arguments, attention=fused("query_key_value"), outputs=_HEAD)


TEXTS: dict[str, Family] = {
    "bert": Family(
        "BertForSequenceClassification",
        "BertConfig",
        {**TEXT, "num_labels": 5},
        attention=_BERT,
        outputs=frozenset({"classifier"}),
    ),
    "roberta": Family(
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**TEXT, **TOKENS, "num_labels": 5},
        attention=_BERT,
        outputs=frozenset({"classifier.out_proj"}),
    ),
    "distilbert": Family(
        "DistilBertForQuestionAnswering",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 60},
        attention=apart("q_lin", "k_lin", "v_lin"),
        outputs=frozenset({"qa_outputs"}),
    ),
    "deberta": Family("DebertaModel", "DebertaConfig", TEXT, attention=fused("in_proj")),
    "deberta_v2": Family(
        "DebertaV2Model", "DebertaV2Config", TEXT, attention=apart("query_proj", "key_proj", "value_proj")
    ),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**TEXT, **TOKENS, "cls_token_id": 1, "sep_token_id": 2, "tie_word_embeddings": False},
        attention=fused("Wqkv"),
        gated=("mlp.Wi", "mlp.act", "mlp.Wo"),
        outputs=frozenset({"decoder"}),
    ),
    "openai": Family("OpenAIGPTModel", "OpenAIGPTConfig", GPT, attention=fused("c_attn")),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT,
        attention=fused("c_attn"),
        tied=("transformer.wte", ("lm_head",)),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**TEXT, "tie_word_embeddings": False},
        attention=fused("query_key_value"),
        outputs=_HEAD,
    ),
    "gpt_neox_japanese": Family(
        "GPTNeoXJapaneseModel",
        "GPTNeoXJapaneseConfig",
        {**TEXT, **TOKENS, "intermediate_multiple_size": 2},
        attention=fused("query_key_value"),
    ),
    "gpt_bigcode": Family(
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        {**GPT, "n_inner": 48, "tie_word_embeddings": False},
        attention=fused("c_attn"),
        outputs=_HEAD,
    ),
    "gpt_bigcode_interleaved": Family(
        "GPTBigCodeModel",
        "GPTBigCodeConfig",
        {**GPT, "n_inner": 48, "multi_query": False},
        attention=fused("c_attn"),
    ),
    "codegen": Family(
        "CodeGenForCausalLM",
        "CodeGenConfig",
        {**GPT, "rotary_dim": 4, "tie_word_embeddings": False},
        attention=fused("qkv_proj"),
        outputs=_HEAD,
    ),
    "falcon_interleaved": _falcon(multi_query=False, alibi=True, bias=True),
    "falcon_multi_query": _falcon(multi_query=True),
    "falcon_grouped": _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60, "tie_word_embeddings": False, **TOKENS},
        attention=fused("query_key_value"),
        outputs=_HEAD,
    ),
    "mpt": Family(
        "MptModel",
        "MptConfig",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 60},
        attention=fused("Wqkv"),
    ),
    "persimmon": Family("PersimmonModel", "PersimmonConfig", {**TEXT, **TOKENS}, attention=fused("query_key_value")),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**BLOCK, **TOKENS, "ffn_dim": 48, "vocab_size": 60, "word_embed_proj_dim": 16, "max_position_embeddings": 20},
        attention=QKV,
        tied=("model.decoder.embed_tokens", ("lm_head",)),
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", LLAMA, attention=QKV, outputs=_HEAD),
    "llama_classifier": Family(
        "LlamaForSequenceClassification",
        "LlamaConfig",
        {**LLAMA, "num_labels": 5},
        attention=QKV,
        outputs=frozenset({"score"}),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**LLAMA, "head_dim": 12, "tie_word_embeddings": True},
        attention=QKV,
        tied=("model.embed_tokens", ("lm_head",)),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "Phi3Config",
        LLAMA,
        attention=fused("qkv_proj"),
        gated=("mlp.gate_up_proj", "mlp.activation_fn", "mlp.down_proj"),
        outputs=_HEAD,
    ),
    "glm4": Family(
        "Glm4ForCausalLM",
        "Glm4Config",
        {**LLAMA, "head_dim": 8},
        attention=QKV,
        gated=("mlp.gate_up_proj", "mlp.activation_fn", "mlp.down_proj"),
        outputs=_HEAD,
    ),
}
