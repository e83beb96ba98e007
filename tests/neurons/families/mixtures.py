"""Mixtures of experts, whose checkpoints store experts one by one where the models hold stacks."""

from __future__ import annotations

from tests.neurons.families.family import ALL, LLAMA, QKV, Family

_HEAD = frozenset({"lm_head"})
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": []}
_NOPE = slice(0, 6)

MIXTURES: dict[str, Family] = {
    "mixtral": Family(
        "MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 4}, attention=QKV, outputs=_HEAD
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**LLAMA, **_EXPERTS, "head_dim": 8}, attention=QKV, outputs=_HEAD
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        attention=QKV,
        outputs=_HEAD,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **LLAMA,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 12,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 5,
        },
        # The latent gives keys and values, but for the keys' rotary part.
        attention={
            "q_b_proj": {"q": ALL},
            "kv_b_proj.k": {"k": _NOPE},
            "kv_b_proj.v": {"v": ALL},
            "kv_a_proj_with_mqa.latent": {"k": _NOPE, "v": ALL},
            "kv_a_proj_with_mqa.k_rope": {"k": slice(6, 10)},
        },
        outputs=_HEAD,
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **LLAMA,
            **_EXPERTS,
            "head_dim": 8,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 5,
        },
        attention={"q_proj.q": {"q": ALL}, "k_proj": {"k": ALL}, "v_proj": {"v": ALL}},
        outputs=_HEAD,
    ),
}
