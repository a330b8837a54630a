"""The shape of the released model, as plain data: reading it imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

DEFAULT_DIFFUSION_MODEL: dict[str, Any] = {
    "positional_embeddings": None,
    "num_layers": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 48,
    "norm_type": "ada_norm",
    "dropout": 0.2,
    "final_dropout": True,
    "output_dim": 1024,
    "interleave_self_attention": True,
}

RELEASED_DIFFUSION_MODEL: dict[str, Any] = {**DEFAULT_DIFFUSION_MODEL, "num_layers": 32}

RELEASED_VL_SELF_ATTENTION: dict[str, Any] = {
    "positional_embeddings": None,
    "num_layers": 4,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "dropout": 0.2,
    "final_dropout": True,
}

QWEN3_VL_2B: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
