"""Sequence to sequence, images, audio, both sides of a contrast, and state spaces."""

from __future__ import annotations

from tests.neurons.families.family import (
    BLOCK,
    GPT,
    IDS,
    IDS_TO_IDS,
    PIXELS,
    QKV,
    TEXT,
    TOKENS,
    VISION,
    Family,
    apart,
    fused,
    given,
)

_CLASSIFIER = frozenset({"classifier"})
_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 60,
    "decoder_start_token_id": 1,
    **TOKENS,
}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
_IMAGE64 = given("pixel_values", 1, 3, 64, 64)
_TWO_SIDES = {"text_config": {**TEXT, **TOKENS}, "vision_config": VISION}

OTHER: dict[str, Family] = {
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60},
        IDS_TO_IDS,
        apart("q", "k", "v"),
        tied=("shared", ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        "BartConfig",
        _SEQ2SEQ,
        IDS_TO_IDS,
        QKV,
        tied=("model.shared", ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")),
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
        {"decoder_input_ids": IDS_TO_IDS["decoder_input_ids"], **given("input_features", 1, 8, 40)},
        QKV,
        tied=("model.decoder.embed_tokens", ("proj_out",)),
    ),
    "wav2vec2": Family(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            **TEXT,
            "conv_dim": (16, 16),
            "conv_stride": (2, 2),
            "conv_kernel": (3, 3),
            "num_conv_pos_embeddings": 9,
            "num_conv_pos_embedding_groups": 4,
        },
        given("input_values", 1, 60),
        QKV,
        outputs=frozenset({"lm_head"}),
    ),
    "bark": Family(
        "BarkSemanticModel",
        "BarkSemanticConfig",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "input_vocab_size": 60, "output_vocab_size": 60},
        attention=fused("att_proj"),
        # Asked for its output embeddings, Bark answers that it has none; its config tells how many codes it writes.
        outputs=frozenset({"lm_head"}),
    ),
    "vit": Family(
        "ViTForImageClassification", "ViTConfig", {**VISION, "num_labels": 5}, PIXELS, QKV, outputs=_CLASSIFIER
    ),
    "resnet": Family(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic", "num_labels": 5},
        _IMAGE64,
        outputs=frozenset({"classifier.1"}),
    ),
    "convnext": Family("ConvNextForImageClassification", "ConvNextConfig", _STAGES, _IMAGE64, outputs=_CLASSIFIER),
    "segformer": Family(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {**_STAGES, "decoder_hidden_size": 16},
        _IMAGE64,
        QKV,
        outputs=frozenset({"decode_head.classifier"}),
    ),
    "swin": Family(
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 16,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "num_labels": 5,
            "window_size": 2,
        },
        PIXELS,
        QKV,
        outputs=_CLASSIFIER,
    ),
    "imagegpt": Family("ImageGPTModel", "ImageGPTConfig", GPT, attention=fused("c_attn")),
    "decision": Family(
        "DecisionTransformerGPT2Model",
        "DecisionTransformerConfig",
        {**GPT, "hidden_size": 32},
        given("inputs_embeds", 1, 6, 32),
        fused("c_attn"),
    ),
    "blip": Family("BlipVisionModel", "BlipVisionConfig", VISION, PIXELS, fused("qkv")),
    "sam": Family(
        "SamVisionModel",
        "SamVisionConfig",
        {**VISION, "mlp_dim": 48, "output_channels": 8, "global_attn_indexes": [0], "window_size": 2},
        PIXELS,
        fused("qkv"),
    ),
    "vitdet": Family("VitDetModel", "VitDetConfig", {**VISION, "pretrain_image_size": 16}, PIXELS, fused("qkv")),
    "hiera": Family(
        "HieraModel",
        "HieraConfig",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]},
        given("pixel_values", 1, 3, 224, 224),
        fused("qkv"),
    ),
    "timesformer": Family(
        "TimesformerModel",
        "TimesformerConfig",
        {**VISION, "patch_size": 8, "num_frames": 2},
        given("pixel_values", 1, 2, 3, 16, 16),
        fused("qkv"),
    ),
    "mgp_str": Family(
        "MgpstrModel",
        "MgpstrConfig",
        {"image_size": [16, 16], "patch_size": 8, **{key: BLOCK[key] for key in BLOCK if key != "intermediate_size"}},
        PIXELS,
        fused("qkv"),
    ),
    "clip": Family("CLIPModel", "CLIPConfig", {**_TWO_SIDES, "projection_dim": 16}, {**IDS, **PIXELS}, QKV),
    "siglip": Family("SiglipModel", "SiglipConfig", _TWO_SIDES, {**IDS, **PIXELS}, QKV),
    "mamba": Family(
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 60},
        tied=("backbone.embeddings", ("lm_head",)),
    ),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "vocab_size": 60,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 6,
            "n_groups": 2,
            "tie_word_embeddings": False,
        },
        outputs=frozenset({"lm_head"}),
    ),
}
