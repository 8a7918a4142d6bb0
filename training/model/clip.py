"""CLIP's two encoders, as CRIS uses them (paper, section 3.1; Radford et al., 2021).

Attribute names are those of the public CLIP and CRIS checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.architecture import Architecture
from training.model.attention import MultiHeadAttention, dot_product_attention, merge_heads, split_heads
from training.model.typed import typed


class Bottleneck(nn.Module):
    """ResNet bottleneck that halves the resolution by average pooling instead of a strided convolution."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inplanes != outplanes:
            shortcut: OrderedDict[str, nn.Module] = OrderedDict()
            shortcut["-1"] = nn.AvgPool2d(stride)
            shortcut["0"] = nn.Conv2d(inplanes, outplanes, 1, bias=False)
            shortcut["1"] = nn.BatchNorm2d(outplanes)
            self.downsample = nn.Sequential(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, H, W) -> (B, 4 planes, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.pool(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut)


class AttentionPool(nn.Module):
    """CLIP's attention pool without the pooling: self-attention over all positions, plus a residual (`connect`).

    CLIP returns only the mean token; CRIS keeps the map (paper, section 3.1).
    """

    def __init__(self, grid: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        self.connect = nn.Sequential(nn.Conv2d(width, embed_dim, 1, bias=False), nn.BatchNorm2d(embed_dim))

    def positions(self, height: int, width: int) -> Tensor:
        """Return the positional embedding without its class row, resized bicubically: (1, height * width, C)."""
        grid = self.positional_embedding[1:].T.reshape(1, -1, self.grid, self.grid)
        resized = F.interpolate(grid.float(), size=(height, width), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, embed_dim, h, w)."""
        height, width = x.shape[-2:]
        residual = self.connect(x)
        tokens = x.flatten(2).transpose(1, 2)  # (B, h w, C)
        tokens = tokens + self.positions(height, width).to(tokens.dtype)
        q = split_heads(self.q_proj(tokens), self.heads)
        k = split_heads(self.k_proj(tokens), self.heads)
        v = split_heads(self.v_proj(tokens), self.heads)
        tokens = self.c_proj(merge_heads(dot_product_attention(q, k, v)))  # (B, h w, embed_dim)
        attended = tokens.transpose(1, 2).unflatten(2, (height, width))
        return F.relu(attended + residual)


class ImageEncoder(nn.Module):
    """CLIP's ModifiedResNet: three-convolution stem, four stages, attention pool."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.vision_width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        blocks = architecture.vision_layers
        self.layer1 = self._stage(width, width, blocks[0], stride=1)
        self.layer2 = self._stage(width * 4, width * 2, blocks[1], stride=2)
        self.layer3 = self._stage(width * 8, width * 4, blocks[2], stride=2)
        self.layer4 = self._stage(width * 16, width * 8, blocks[3], stride=2)
        self.attnpool = AttentionPool(
            architecture.image_resolution // 32, width * 32, architecture.vision_heads, architecture.embed_dim
        )
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                nn.init.zeros_(typed(block, Bottleneck).bn3.weight)  # as CLIP: a block starts as its shortcut

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(inplanes, planes, stride)
        rest = [Bottleneck(planes * Bottleneck.expansion, planes) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> c3 (B, 8w, S/8, S/8), c4 (B, 16w, S/16, S/16), c5 (B, embed_dim, S/32, S/32)."""
        x = F.relu(self.bn1(self.conv1(image)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.layer1(self.avgpool(x))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        c5 = self.attnpool(self.layer4(c4))
        return c3, c4, c5


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block of CLIP's text encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["c_fc"] = nn.Linear(width, width * 4)
        layers["gelu"] = QuickGELU()
        layers["c_proj"] = nn.Linear(width * 4, width)
        self.mlp = nn.Sequential(layers)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same; a token attends to itself and earlier tokens."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, is_causal=True)
        fed_forward: Tensor = self.mlp(self.ln_2(x))
        return x + fed_forward


class Transformer(nn.Module):
    """The stack of text blocks; a separate module because checkpoints name it so."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same."""
        encoded: Tensor = self.resblocks(x)
        return encoded


class CLIP(nn.Module):
    """Both encoders. `logit_scale` is not used by CRIS; it is kept so that checkpoints round-trip unchanged."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, layers = architecture.text_width, architecture.text_layers
        self.visual = ImageEncoder(architecture)
        self.transformer = Transformer(width, layers, architecture.text_heads)
        self.token_embedding = nn.Embedding(architecture.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(architecture.context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, architecture.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self._initialize_text(width, layers)

    def _initialize_text(self, width: int, layers: int) -> None:
        """Initialize as CLIP does, for small networks trained from scratch."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for child in self.transformer.resblocks:
            block = typed(child, ResidualAttentionBlock)
            for projection in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj):
                nn.init.normal_(projection.weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(typed(block.mlp.c_fc, nn.Linear).weight, std=(2 * width) ** -0.5)
            nn.init.normal_(typed(block.mlp.c_proj, nn.Linear).weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps c3, c4 and c5 of `ImageEncoder.forward`."""
        features: tuple[Tensor, Tensor, Tensor] = self.visual(image)
        return features

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) int64 -> words (B, L, C), not projected, and the sentence (B, embed_dim).

        The sentence vector is taken at the end token, which has the largest id of the vocabulary.
        """
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        words = self.ln_final(self.transformer(x))
        end = tokens.argmax(dim=-1)
        sentence = words[torch.arange(len(tokens), device=tokens.device), end] @ self.text_projection
        return words, sentence
