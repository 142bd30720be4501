"""The argument of every GEMM kernel, as bytes: the same struct as `cuda/billhook/problem/params.cuh`."""

from __future__ import annotations

import struct

POINTERS = (
    "a",
    "codes",
    "scales",
    "zeros",
    "channel_scales",
    "token_scales",
    "global_scales",
    "bias",
    "d",
    "partials",
    "sorted_token_ids",
    "expert_ids",
    "num_tokens_padded",
    "topk_weights",
)
NUMBERS = ("m", "n", "k", "lda", "ldd", "strips", "blocks", "groups", "top_k", "split_k")
LAYOUT = struct.Struct(f"={len(POINTERS)}Q{len(NUMBERS)}i")  # pointers first: no gaps, a multiple of 8 bytes

pack_into = LAYOUT.pack_into
