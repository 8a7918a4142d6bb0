"""Multi-head attention with a linear layer for each of q, k, v and the output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al., 2017, equation 1), as ``nn.MultiheadAttention`` computes it.

    That class has q, k and v in one parameter, which quantization tools do not support; here each is an ``nn.Linear``.
    `training.checkpoint` splits and joins them so that public checkpoints load and save unchanged.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        # nn.MultiheadAttention initializes q, k and v as one Xavier-uniform (3C, C) matrix, and every bias with zero.
        bound = math.sqrt(6 / (4 * width))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend from `query` (B, N, C) to `key` and `value` (B, M, C); `mask` is True at positions to attend to."""
        q = split_heads(self.q_proj(query), self.heads)  # (B, heads, N, d)
        k = split_heads(self.k_proj(key), self.heads)  # (B, heads, M, d)
        v = split_heads(self.v_proj(value), self.heads)
        dropout = self.dropout if self.training else 0.0
        x = dot_product_attention(q, k, v, mask, dropout, is_causal)
        out: Tensor = self.out_proj(merge_heads(x))
        return out


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """`q` (B, heads, N, d) and `k`, `v` (B, heads, M, d) -> (B, heads, N, d), as PyTorch's function of that name.

    On CPUs the backward pass of plain products of contiguous matrices is two to three times faster than that of
    PyTorch's kernels, so training uses plain products.
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    q, k, v = (x.contiguous() for x in (q, k, v))
    scores = torch.matmul(q / math.sqrt(q.shape[-1]), k.transpose(-1, -2))  # (B, heads, N, M)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.matmul(F.dropout(scores.softmax(dim=-1), dropout), v)


def attend(query: Tensor, key: Tensor, value: Tensor, penalty: Tensor | None = None) -> Tensor:
    """Attention written out, for export: `query` (B, heads, N, d), `key` (B, heads, d, M) already scaled.

    `value` is (B, heads, M, d) and `penalty`, if given, is subtracted from the scores; returns (B, N, heads * d).
    """
    scores = torch.matmul(query, key)  # (B, heads, N, M)
    if penalty is not None:
        # Not `scores + bias`: OpenVINO 2026.4 fuses product, sum, softmax and product into one kernel, which returns
        # wrong numbers or NaN in bfloat16. It does not fuse a difference.
        scores = scores - penalty
    return merge_heads(torch.matmul(scores.softmax(dim=-1), value))
