"""Presence: whether the prompt's object is in the image at all. Not part of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.architecture import Architecture


class PresenceHead(nn.Module):
    """One logit from the sentence vector and pooled pixel features.

    The decoder's features are projected, pooled over all pixels by maximum and by mean, and multiplied with a query
    made of the sentence. Pooling needs no attention, so the head costs next to nothing in every runtime.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, embed = architecture.text_width, architecture.embed_dim
        self.pixel = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(embed)
        self.text = nn.Linear(embed, 2 * channels)
        self.hidden = nn.Linear(2 * channels, channels)
        self.out = nn.Linear(channels, 1)

    def forward(self, decoded: Tensor, sentence: Tensor) -> Tensor:
        """Decoded (B, C, h, w) and the sentences (B, embed) -> presence logits (B, 1)."""
        return self.decide(decoded.flatten(2).transpose(1, 2), self.query(sentence))

    def query(self, sentence: Tensor) -> Tensor:
        """Sentences (B, embed) -> queries (B, 2 C)."""
        query: Tensor = self.text(self.norm(sentence))
        return query

    def decide(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Image tokens (B, N, C) and queries (B, 2 C) -> presence logits (B, 1)."""
        x = F.relu(self.pixel(tokens))
        pooled = torch.cat((x.amax(dim=1), x.mean(dim=1)), dim=1)  # (B, 2 C)
        logit: Tensor = self.out(F.relu(self.hidden(pooled * query)))
        return logit
