"""The selector: which candidate a prompt means, or none.

Words and candidates meet in a small transformer, and beside it explicitly: a word with the classes that it may name, a
colour word with the colours measured in a box, a word with the box's appearance; and each candidate is ranked (left,
above, larger) among those that match the prompt. The computation is in three parts that depend on the image alone
(`encode_candidates`), on the prompt alone (`encode_words`), and on both (`match`), which are exported apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.attention import attend, split_heads
from training.model.candidates import COLOUR_FEATURES, FEATURES, REGIONS, Candidates, pairwise_iou
from training.model.colournames import COLOURS
from training.model.nanodet import CLASSES

VOCABULARY = 49408  # CLIP's byte-pair tokens

_PENALTY = 1e4  # taken from the scores of what must not be seen
_PAIR = 9  # features of a pair of candidates
_RELATIONS = 7  # orders in which candidates are ranked
_APPEARANCE = 64
_EXPLICIT = 14 + 2 * _RELATIONS


@dataclass(frozen=True, kw_only=True)
class SelectorSizes:
    """Sizes of a selector.

    Attributes:
        width: Of words and candidates in the transformers.
        heads: Of attention.
        text_layers: Layers over the words alone.
        layers: Layers over the candidates, which look at the words.
        rows: Rows of the word table; tokens without one share the second.
        word_vector: Width of the frozen word vectors.
        learned: Width of what is learned beside them, from zero.
        positions: The longest prompt, in tokens.
        dropout: In training.
    """

    width: int = 128
    heads: int = 4
    text_layers: int = 3
    layers: int = 3
    rows: int = 12288
    word_vector: int = 128
    learned: int = 32
    positions: int = 32
    dropout: float = 0.1


class WordTable(nn.Module):
    """What is known of words before training, and never changed by it; see `training.wordtable`."""

    row: Tensor
    vectors: Tensor
    classes: Tensor
    colours: Tensor

    def __init__(self, sizes: SelectorSizes) -> None:
        super().__init__()
        self.register_buffer("row", torch.zeros(VOCABULARY, dtype=torch.int64))
        self.register_buffer("vectors", torch.zeros(sizes.rows, sizes.word_vector))
        self.register_buffer("classes", torch.zeros(sizes.rows, len(CLASSES)))
        self.register_buffer("colours", torch.zeros(sizes.rows, len(COLOURS)))


class CandidateTokens(NamedTuple):
    """All that depends on the image alone.

    Attributes:
        tokens: (B, N + 1, D), the last stands for "none".
        bias: (B, layers * heads, N + 1, N + 1), of attention between candidates.
        pairs: (B, 9, N + 1, N + 1), geometry of pairs.
        relations: (B, 7, N, N), whether the second candidate is left of the first, right, above, ...
        kinds: (B, N, 80), class probabilities relative to the best class.
        hues: (B, N, 4 * 12), shares of the colour names by region.
        appearance: (B, N, 64).
        penalty: (B, N), 0 for candidates, 1e4 for empty slots.
    """

    tokens: Tensor
    bias: Tensor
    pairs: Tensor
    relations: Tensor
    kinds: Tensor
    hues: Tensor
    appearance: Tensor
    penalty: Tensor


class Words(NamedTuple):
    """All that depends on the prompt alone.

    Attributes:
        words: (P, L, D).
        sentence: (P, D).
        classes: (P, L, 80), how much each word names each class.
        colours: (P, L, 12), how much each word names each colour.
        heads: (P, L, 2), two distributions over the words: which of them name what is meant.
        query: (P, 64, 1), the appearance that is asked for.
        pairs: (P, layers * heads, 9), how much the geometry of pairs matters.
        padding: (P, 1, 1, L), 0 for words, 1e4 for padding.
    """

    words: Tensor
    sentence: Tensor
    classes: Tensor
    colours: Tensor
    heads: Tensor
    query: Tensor
    pairs: Tensor
    padding: Tensor


class Attention(nn.Module):
    """Multi-head attention with a penalty that is taken from its scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(width // heads)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, penalty: Tensor) -> Tensor:
        """`query` (B, N, D), `memory` (B, M, D), `penalty` broadcast to (B, heads, N, M) -> (B, N, D)."""
        q = split_heads(self.q_proj(query) * self.scale, self.heads)
        k = split_heads(self.k_proj(memory), self.heads).transpose(2, 3)
        v = split_heads(self.v_proj(memory), self.heads)
        out: Tensor = self.out_proj(attend(q, k, v, penalty))
        return out


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class WordLayer(nn.Module):
    """A transformer layer over the words."""

    def __init__(self, sizes: SelectorSizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = Attention(sizes.width, sizes.heads)
        self.mlp, self.dropout = _feed_forward(sizes.width), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """(P, L, D) and the padding's penalty (P, 1, 1, L) -> (P, L, D)."""
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, normed, padding))
        fed_forward: Tensor = self.dropout(self.mlp(self.norm2(x)))
        return x + fed_forward


class CandidateLayer(nn.Module):
    """A transformer layer over the candidates, which look at each other and at the words."""

    def __init__(self, sizes: SelectorSizes) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(sizes.width) for _ in range(3))
        self.itself, self.words = Attention(sizes.width, sizes.heads), Attention(sizes.width, sizes.heads)
        self.mlp, self.dropout = _feed_forward(sizes.width), nn.Dropout(sizes.dropout)
        self.meeting = nn.Parameter(torch.ones(sizes.heads, 1, 1))

    def forward(self, x: Tensor, among: Tensor, words: Tensor, padding: Tensor, meeting: Tensor) -> Tensor:
        """Candidates (P, N, D) -> (P, N, D).

        Args:
            x: The candidates.
            among: (P, heads, N, N), penalty between candidates.
            words: (P, L, D).
            padding: (P, 1, 1, L), penalty of padding.
            meeting: (P, 1, N, L), how well each word matches each candidate.
        """
        normed = self.norm1(x)
        x = x + self.dropout(self.itself(normed, normed, among))
        x = x + self.dropout(self.words(self.norm2(x), words, padding - self.meeting * meeting))
        fed_forward: Tensor = self.dropout(self.mlp(self.norm3(x)))
        return x + fed_forward


class Selector(nn.Module):
    """Prompts and candidates -> a score for each candidate, and for none."""

    frequencies: Tensor

    def __init__(self, sizes: SelectorSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or SelectorSizes()
        width, biases = sizes.width, sizes.layers * sizes.heads
        vector = sizes.word_vector + sizes.learned
        self.table = WordTable(sizes)
        self.learned = nn.Parameter(torch.zeros(sizes.rows, sizes.learned))
        self.embed = nn.Linear(vector, width)
        self.places = nn.Parameter(torch.randn(sizes.positions, width) * 0.02)
        self.text = nn.ModuleList(WordLayer(sizes) for _ in range(sizes.text_layers))
        self.text_norm = nn.LayerNorm(width)
        self.summary = nn.Linear(width, 1)
        self.head_words = nn.Linear(width, 2)
        self.word_classes = nn.Linear(vector, len(CLASSES), bias=False)
        self.word_colours = nn.Linear(vector, len(COLOURS), bias=False)
        self.word_query = nn.Linear(vector, _APPEARANCE)
        self.word_gate = nn.Linear(width, 1)
        self.pair_query = nn.Linear(width, biases * _PAIR)

        self.register_buffer("frequencies", 2.0 ** torch.arange(6) * math.pi)
        self.kind = nn.Linear(len(CLASSES) + sizes.word_vector + 1, width)
        self.geometry = nn.Sequential(nn.Linear(10 + 24 + _RELATIONS + 2, 96), nn.GELU(), nn.Linear(96, width))
        self.looks = nn.Sequential(
            nn.Dropout(2 * sizes.dropout),
            nn.Linear(FEATURES + COLOUR_FEATURES, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.appearance = nn.Linear(FEATURES + COLOUR_FEATURES, _APPEARANCE)
        self.unseen = nn.Parameter(torch.zeros(width))
        self.mix = nn.Sequential(nn.LayerNorm(width), *_feed_forward(width))
        self.none = nn.Parameter(torch.randn(width) * 0.1)
        self.pair = nn.Sequential(nn.Linear(_PAIR, 16), nn.ReLU(), nn.Linear(16, biases))
        self.class_vectors = nn.Parameter(torch.zeros(len(CLASSES), sizes.word_vector), requires_grad=False)
        self.hue_mix = nn.Parameter(torch.eye(len(COLOURS)))

        self.gate = nn.Linear(width, width)
        self.explicit = nn.Linear(_EXPLICIT, width)
        self.direct = nn.Sequential(nn.Linear(_EXPLICIT, 48), nn.GELU(), nn.Linear(48, 1))
        self.bilinear = nn.Parameter(torch.tensor(0.5))
        self.hue_weight = nn.Parameter(torch.tensor(1.0))
        self.layers = nn.ModuleList(CandidateLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(width)
        self.match_candidate, self.match_sentence = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        for layer in (self.gate, self.explicit, self.word_classes, self.word_colours, self.pair_query):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, candidates: Candidates, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Score candidates of B images for P prompts.

        Args:
            candidates: Of B images, N each.
            tokens: (P, L) int64, zero-padded, P a multiple of B: prompt j is about image j // (P / B).

        Returns:
            Scores (P, N), -1e4 where a slot is empty, and the score (P, 1) of "none"; their softmax together is the
            probability that the prompt means a candidate or none of them.
        """
        encoded = self.encode_candidates(candidates)
        times = len(tokens) // len(candidates.boxes)
        if times > 1:
            encoded = CandidateTokens(*(tensor.repeat_interleave(times, 0) for tensor in encoded))
        return self.match(encoded, self.encode_words(tokens))

    def encode_words(self, tokens: Tensor) -> Words:
        """Everything about prompts (P, L) int64 that no image is needed for."""
        return self.encode_rows(tokens, self.word_rows()[self.table.row[tokens]])

    def word_rows(self) -> Tensor:
        """All that is known of each word, (rows, vector + 80 + 12)."""
        return torch.cat((self.table.vectors, self.learned, self.table.classes, self.table.colours), 1)

    def encode_rows(self, tokens: Tensor, rows: Tensor) -> Words:
        """As `encode_words`, with the words' rows (P, L, vector + 80 + 12) looked up."""
        widths = (self.sizes.word_vector + self.sizes.learned, len(CLASSES), len(COLOURS))
        vectors, known_classes, known_colours = rows.split(widths, -1)
        missing = (tokens == 0).to(vectors.dtype)
        padding = (missing * _PENALTY)[:, None, None]
        x = self.embed(vectors) + self.places[: tokens.shape[1]]
        for layer in self.text:
            x = layer(x, padding)
        words = self.text_norm(x)
        hidden = missing[..., None] * _PENALTY
        share = (self.summary(words) - hidden).softmax(1)
        sentence = torch.matmul(share.transpose(1, 2), words)[:, 0]
        classes = known_classes + torch.tanh(self.word_classes(vectors))
        colours = known_colours + torch.tanh(self.word_colours(vectors))
        seen = (1 - missing)[..., None]
        gates = torch.sigmoid(self.word_gate(words)) * seen
        query = torch.matmul(self.word_query(vectors).transpose(1, 2), gates)
        pairs = self.pair_query(sentence).unflatten(1, (-1, _PAIR))
        heads = (self.head_words(words) - hidden).softmax(1)
        return Words(words, sentence, classes * seen, colours * seen, heads, query, pairs, padding)

    def encode_candidates(self, candidates: Candidates) -> CandidateTokens:
        """Everything about candidates that no prompt is needed for; features and colours of zero are unknown ones."""
        probabilities, boxes, aspect, features, colours, valid = candidates
        mask = valid.to(boxes.dtype)
        x0, y0, x1, y1 = boxes.unbind(-1)
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        width, height = (x1 - x0).clamp(min=1e-3), (y1 - y0).clamp(min=1e-3)
        area = torch.log(width * height + 1e-4)
        shape = torch.log(width / height * aspect[:, None])
        places = torch.stack((x0, y0, x1, y1, cx, cy, width, height, (width * height).sqrt(), shape), -1)
        x_waves, y_waves = cx[..., None] * self.frequencies, cy[..., None] * self.frequencies
        waves = torch.cat((x_waves.sin(), x_waves.cos(), y_waves.sin(), y_waves.cos()), -1)

        best = probabilities.amax(-1)
        weight = (best / 0.4).clamp(max=1) ** 2 * mask
        unit = probabilities / (probabilities.square().sum(-1, keepdim=True).sqrt() + 1e-3)
        alike = torch.matmul(unit, unit.transpose(1, 2)).clamp(0, 1)
        overlap = pairwise_iou(boxes, boxes)
        lower = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
        upper = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
        inside = lower.clamp(min=0) * upper.clamp(min=0) / (width * height)[..., None]
        dx, dy, darea = (_differences(value) for value in (cx, cy, area))
        dbottom = _differences(y1)
        orders = torch.stack(
            (
                *(torch.sigmoid(30 * dx), torch.sigmoid(-30 * dx), torch.sigmoid(30 * dy), torch.sigmoid(-30 * dy)),
                *(torch.sigmoid(6 * darea), torch.sigmoid(-6 * darea), torch.sigmoid(30 * dbottom)),
            ),
            1,
        )
        apart = ((1 - overlap) ** 2 * weight[:, None])[:, None]  # duplicates do not count, nor does each for itself
        relations = orders * apart  # (B, 7, N, N)
        rivals = apart * alike[:, None]
        among = torch.log1p((relations * alike[:, None]).sum(-1)).transpose(1, 2)  # (B, N, 7)
        count = torch.log1p(rivals.sum(-1)).transpose(1, 2)
        geometry = torch.cat((places, waves, among, count, weight[..., None]), -1)

        kind = probabilities / (probabilities.sum(-1, keepdim=True) + 0.05)
        classes = torch.cat((probabilities, torch.matmul(kind, self.class_vectors), best[..., None]), -1)
        looks = torch.cat((features, colours), -1)
        seen = (features.abs().amax(-1, keepdim=True) > 0).to(looks.dtype)  # layouts have boxes but no pixels
        x = self.kind(classes) + self.geometry(geometry) + seen * self.looks(looks) + (1 - seen) * self.unseen
        x = x + self.mix(x)
        tokens = torch.cat((x, self.none.expand(len(x), 1, -1)), 1)
        pairs = torch.stack(
            (
                *(dx, dy, torch.tanh(8 * dx), torch.tanh(8 * dy), darea.clamp(-4.0, 4.0) / 2),
                *(overlap, inside, alike, weight[:, None].expand_as(alike)),
            ),
            -1,
        )
        bias = F.pad(self.pair(pairs).permute(0, 3, 1, 2), (0, 1, 0, 1))
        pairs = F.pad(pairs.permute(0, 3, 1, 2), (0, 1, 0, 1))
        kinds = probabilities / (best[..., None] + 0.1)
        shares = colours.unflatten(2, (len(REGIONS), -1))[..., : len(COLOURS)]
        hues = torch.matmul(shares, self.hue_mix).flatten(2)
        appearance = seen * self.appearance(looks)
        return CandidateTokens(tokens, bias, pairs, relations, kinds, hues, appearance, (1 - mask) * _PENALTY)

    def match(self, candidates: CandidateTokens, words: Words) -> tuple[Tensor, Tensor]:
        """Scores (P, N) and the score of none (P, 1), of one prompt an image."""
        naming = torch.matmul(candidates.kinds, words.classes.transpose(1, 2))  # (P, N, L)
        hues = candidates.hues.unflatten(2, (len(REGIONS), -1)).flatten(1, 2)  # (P, N 4, 12)
        colouring = torch.matmul(hues, words.colours.transpose(1, 2)).unflatten(1, (-1, len(REGIONS)))  # (P, N, 4, L)
        named = torch.matmul(naming.clamp(-1.0, 1.5), words.heads)  # (P, N, 2)
        visible = 1 - candidates.penalty[..., None] / _PENALTY  # (P, N, 1)
        among_named = named.clamp(min=0) * visible
        named_most = named / (among_named.amax(1, keepdim=True) + 0.1)
        coloured = colouring.sum(-1).clamp(-1.0, 1.5)  # (P, N, 4)
        best_hue = coloured.amax(-1, keepdim=True)
        hue_most = best_hue / ((best_hue.clamp(min=0) * among_named[..., :1]).amax(1, keepdim=True) + 0.1)
        about_colour = words.colours.clamp(min=0).sum((1, 2))[:, None, None].clamp(max=2).expand_as(best_hue)
        appearance = torch.tanh(torch.matmul(candidates.appearance, words.query) / 8)
        matching = (named_most[..., :1] * visible).clamp(0, 1)  # (P, N, 1)
        ranks = torch.matmul(candidates.relations, matching[:, None])[..., 0].transpose(1, 2)  # (P, N, 7)
        first = torch.exp(-2 * ranks)  # near 1 for the leftmost, rightmost, ... of what matches
        explicit = torch.cat(
            (
                *(named, named_most.clamp(-2.0, 2.0), naming.amax(-1, keepdim=True).clamp(max=1.5)),
                *(coloured, hue_most.clamp(-2.0, 2.0), about_colour, appearance),
                *(torch.log1p(ranks.sum(-1, keepdim=True)), matching, torch.log1p(ranks), first),
            ),
            -1,
        )
        x = candidates.tokens * (1 + self.gate(words.sentence)[:, None])
        x = x + F.pad(self.explicit(explicit), (0, 0, 0, 1))
        meeting = F.pad((naming + self.hue_weight * colouring.amax(2))[:, None], (0, 0, 0, 1))
        size = candidates.tokens.shape[1]
        asked = torch.matmul(words.pairs, candidates.pairs.flatten(2)).unflatten(2, (size, size))
        hidden = F.pad(candidates.penalty, (0, 1))[:, None, None]
        among = hidden - candidates.bias - asked  # (P, layers * heads, N + 1, N + 1)
        for layer, penalty in zip(self.layers, among.split(self.sizes.heads, 1), strict=True):
            x = layer(x, penalty, words.words, words.padding, meeting)
        x = self.norm(x)
        sentence = self.match_sentence(words.sentence)[..., None] / math.sqrt(self.sizes.width)
        scores = (torch.matmul(self.match_candidate(x), sentence) + self.score(x))[..., 0]
        direct = (self.direct(explicit) + self.bilinear * 4 * appearance)[..., 0]
        return scores[:, :-1] + direct - candidates.penalty, scores[:, -1:]


def _differences(values: Tensor) -> Tensor:
    """(B, N) -> (B, N, N): the first candidate's value minus the second's."""
    return values[:, :, None] - values[:, None]


def choose(scores: Tensor, squares: Tensor) -> Tensor:
    """The box with the highest score: scores (P, N) and boxes (P, N, 4) -> (P, 4)."""
    best = scores.argmax(1, keepdim=True)
    places = torch.arange(scores.shape[1], device=scores.device)
    one = (best == places).to(squares.dtype)  # (P, N); a sum, because gathering rows is not for every device
    return torch.matmul(one[:, None], squares)[:, 0]


def presence(scores: Tensor, none: Tensor) -> Tensor:
    """Scores of candidates (P, N) and of none (P, 1) -> logit (P, 1) of the probability that it is one of them."""
    most = scores.amax(1, keepdim=True)
    return (scores - most).exp().sum(1, keepdim=True).log() + most - none
