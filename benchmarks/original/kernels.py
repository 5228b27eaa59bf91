"""The attention that the original's train.py downloads, by the best that is here.

FlashAttention 3 where its package is installed; otherwise cuDNN for whole rows and
FlexAttention, compiled into the model, for windows. Same semantics: a query sees itself
and window_size[0] keys before it.
"""

import types

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

compiled = torch.compile(flex_attention, dynamic=False)
SHARES = (2, 3, 4, 6, 8, 10, 12, 16)  # of the context: the windows that were ever tried
MASKS = {}  # (length, keys before the query) -> block mask, made before compiling


def make_mask(length, back, device="cuda"):
    def near(b, h, query, key):
        return (query >= key) & (query - key <= back)

    return create_block_mask(near, None, None, length, length, device=device)


def flash_attn_func(q, k, v, causal=True, window_size=(-1, -1)):
    """(B, T, H, D) each -> the same"""
    length, back = q.shape[1], window_size[0]
    q, k, v = (x.bfloat16().transpose(1, 2) for x in (q, k, v))
    if back < 0 or back >= length - 1:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    attend = flex_attention if torch.compiler.is_compiling() else compiled
    return attend(q, k, v, block_mask=MASKS[length, back]).transpose(1, 2)


def get_kernel(name):
    """The module that `kernels.get_kernel` would have fetched."""
    try:
        import flash_attn_interface as found
    except ImportError:
        from prepare import MAX_SEQ_LEN

        for back in {MAX_SEQ_LEN // share for share in SHARES}:
            MASKS[MAX_SEQ_LEN, back] = make_mask(MAX_SEQ_LEN, back)
        torch.backends.cuda.enable_flash_sdp(False)  # cuDNN is faster on Hopper
        found = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    return types.SimpleNamespace(flash_attn_interface=found)
