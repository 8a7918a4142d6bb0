"""The vision-language decoder: self-attention of pixels, then cross-attention to words (paper, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.model.architecture import Architecture
from training.model.attention import MultiHeadAttention


def _sinusoids(positions: Tensor, channels: int) -> Tensor:
    """Sine on even, cosine on odd channels: (N,) -> (N, channels)."""
    rates = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = positions.double()[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def word_positions(length: int, channels: int) -> Tensor:
    """Fixed positional encoding of the words: (1, length, C)."""
    return _sinusoids(torch.arange(length), channels).float().unsqueeze(0)


def image_positions(height: int, width: int, channels: int) -> Tensor:
    """Fixed positional encoding of the image tokens: (1, height * width, C), columns in the first half of C."""
    columns = _sinusoids(torch.arange(width), channels // 2).expand(height, -1, -1)
    rows = _sinusoids(torch.arange(height), channels // 2)[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), dim=-1).float().flatten(0, 1).unsqueeze(0)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward network, each normed before and after (equations 5 to 8)."""

    def __init__(self, width: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(width)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.self_attn = MultiHeadAttention(width, heads, dropout)
        self.multihead_attn = MultiHeadAttention(width, heads, dropout)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(ffn_dim), nn.Linear(ffn_dim, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, t: Tensor, v_pos: Tensor, t_pos: Tensor, seen: Tensor) -> Tensor:
        """Image tokens v (B, N, C), words t (B, L, C), `seen` (B, 1, 1, L), False for padding -> (B, N, C)."""
        x = self.norm1(v)
        q = k = x + v_pos
        v = v + self.dropout(self.self_attn_norm(self.self_attn(q, k, x)))
        q = self.norm2(v) + v_pos
        v = v + self.dropout(self.cross_attn_norm(self.multihead_attn(q, t + t_pos, t, mask=seen)))
        fed_forward: Tensor = self.dropout(self.ffn(self.norm3(v)))
        return v + fed_forward


class Decoder(nn.Module):
    """n layers and a final norm; n = 0 leaves only the norm (paper, table 4)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                architecture.text_width, architecture.decoder_heads, architecture.ffn_dim, architecture.dropout
            )
            for _ in range(architecture.decoder_layers)
        )
        self.norm = nn.LayerNorm(architecture.text_width)

    def forward(self, fused: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """Fused (B, C, h, w), words (B, L, C), padding (B, L) True for padding tokens -> (B, C, h, w)."""
        batch, channels, height, width = fused.shape
        v = fused.flatten(2).transpose(1, 2)  # (B, h w, C)
        v_pos = image_positions(height, width, channels).to(v)
        t_pos = word_positions(words.shape[1], channels).to(words)
        seen = ~padding[:, None, None, :]
        for layer in self.layers:
            v = layer(v, words, v_pos, t_pos, seen)
        decoded: Tensor = self.norm(v)
        return decoded.transpose(1, 2).reshape(batch, channels, height, width)
