"""CRIS as three modules for static export; the same function as `CRIS.forward`, rearranged in exact arithmetic.

An app asks several prompts about one image and one prompt about many images. Everything that depends on the image
alone is computed by `DeployImageEncoder`, everything that depends on the prompt alone by `DeployTextEncoder`, and the
rest, per pair, by `DeployMaskDecoder`. The rearrangements, all exact:

- Batch norm is folded into the convolution before it. The neck's norm of (image x sentence) is ``a (v s) + b``; ``a``
  is moved to the sentence vector.
- A 1x1 convolution of a concatenation is the sum of two, one per part; the part that does not depend on the sentence
  belongs to the image. It also commutes with bilinear upsampling, whose weights sum to one.
- Coordinate channels are constants, and so is their convolution.
- Keys and values of the decoder's cross-attention depend on the words alone.
- The last 1x1 convolution folds into the sentence's kernel, its bias into one constant for each of the nine taps.
- A 3x3 convolution to one channel is a (9 x C) by (C x HW) matrix product and nine shifted additions. As a convolution
  its weights would depend on the input, which OpenVINO refuses; the transposed form of the product is avoided because
  an ONNX Runtime optimizer computes it wrongly (1.31.1, MatmulTransposeFusion).
- The products of the projector's 3x3 convolutions can be computed before the upsampling, on a quarter of the pixels or
  on half of them (`DeployMaskDecoder.at_resolution`): the former is faster in float, the latter in int8.
- The presence head is split: its query depends on the prompt alone.
"""

from __future__ import annotations

import copy
import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.architecture import Architecture
from training.model.attention import MultiHeadAttention, attend, split_heads
from training.model.clip import CLIP, AttentionPool, Bottleneck, ResidualAttentionBlock
from training.model.decoder import Decoder, DecoderLayer, image_positions, word_positions
from training.model.fold import conv, conv_bn, fold_block, linear, scale_and_shift
from training.model.neck import CoordConv, Neck, coordinates, upsample2
from training.model.presence_head import PresenceHead
from training.model.projector import Projector
from training.model.typed import typed
from training.model.upsampled import HalfResolution, LowResolution

Resolution = Literal["full", "half", "low"]

# Subtracted from the scores of masked positions: exp(-1e4) is 0 in float32, and 1e4 fits every type of a device.
UNSEEN = 1e4


class Parts(Protocol):
    """The parts of `CRIS`."""

    architecture: Architecture
    backbone: CLIP
    neck: Neck
    decoder: Decoder
    proj: Projector
    presence: PresenceHead | None


def _scaled_key(attention: MultiHeadAttention | AttentionPool) -> nn.Linear:
    """The key projection with attention's 1 / sqrt(d) in its weights."""
    projection = attention.k_proj
    scale = math.sqrt(attention.heads / projection.out_features)
    return linear(projection.weight * scale, projection.bias * scale)


def _to_map(tokens: Tensor, side: int) -> Tensor:
    """(B, C, side * side) -> (B, C, side, side)."""
    unflattened: Tensor = tokens.unflatten(2, (side, side))
    return unflattened


class DeployBottleneck(nn.Module):
    """`Bottleneck` with its norms folded."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = conv_bn(block.conv1, block.bn1)
        self.conv2 = conv_bn(block.conv2, block.bn2)
        self.pool = block.pool
        self.conv3 = conv_bn(block.conv3, block.bn3)
        self.shortcut: nn.Module = nn.Identity()
        if block.downsample is not None:
            pool, folded = typed(block.downsample[0], nn.AvgPool2d), fold_block(block.downsample[1:])
            self.shortcut = folded if pool.kernel_size == 1 else nn.Sequential(pool, folded)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out = F.relu(self.conv1(x))
        out = F.relu(self.conv2(out))
        return F.relu(self.conv3(self.pool(out)) + self.shortcut(x))


class DeployAttentionPool(nn.Module):
    """`AttentionPool` for one grid size, with its positional embedding resized in advance."""

    positions: Tensor

    def __init__(self, pool: AttentionPool, grid: int) -> None:
        super().__init__()
        self.heads, self.grid = pool.heads, grid
        self.register_buffer("positions", pool.positions(grid, grid).clone())
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = pool.q_proj, _scaled_key(pool), pool.v_proj, pool.c_proj
        self.connect = fold_block(pool.connect)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, g, g) -> (B, embed, g, g)."""
        tokens = x.flatten(2).transpose(1, 2) + self.positions
        query = split_heads(self.q_proj(tokens), self.heads)
        key = split_heads(self.k_proj(tokens), self.heads).transpose(2, 3)
        value = split_heads(self.v_proj(tokens), self.heads)
        attended = self.c_proj(attend(query, key, value)).transpose(1, 2)
        return F.relu(_to_map(attended, self.grid) + self.connect(x))


class DeployImageEncoder(nn.Module):
    """Everything that depends on the image alone: CLIP's image encoder and part of the neck."""

    input_names = ("image",)
    output_names = ("visual5", "visual4", "visual3")

    def __init__(self, model: Parts) -> None:
        super().__init__()
        visual, neck = model.backbone.visual, model.neck
        self.conv1 = conv_bn(visual.conv1, visual.bn1)
        self.conv2 = conv_bn(visual.conv2, visual.bn2)
        self.conv3 = conv_bn(visual.conv3, visual.bn3)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(DeployBottleneck(typed(block, Bottleneck)) for block in stage))
            for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        )
        self.attnpool = DeployAttentionPool(visual.attnpool, model.architecture.input_size // 32)

        self.f1_v_proj = fold_block(neck.f1_v_proj)
        self.f2_v_proj = fold_block(neck.f2_v_proj)
        self.f3_v_proj = fold_block(neck.f3_v_proj)
        f2_cat, f3_cat = (fold_block(cat) for cat in (neck.f2_cat, neck.f3_cat))
        self.f2_cat = conv(f2_cat.weight[:, : self.f2_v_proj.out_channels], f2_cat.bias)
        self.f3_cat = conv(f3_cat.weight[:, : self.f3_v_proj.out_channels], f3_cat.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> visual5 (B, D, S/32, S/32), visual4 and visual3 (B, C, S/16, S/16)."""
        x = F.relu(self.conv1(image))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        c3 = self.layer2(self.layer1(F.avg_pool2d(x, 2)))
        c4 = self.layer3(c3)
        c5 = self.attnpool(self.layer4(c4))

        visual5 = F.relu(self.f1_v_proj(c5))
        visual4 = self.f2_cat(F.relu(self.f2_v_proj(c4)))
        visual3 = self.f3_cat(F.avg_pool2d(F.relu(self.f3_v_proj(c3)), 2))
        return visual5, visual4, visual3


class DeployTextBlock(nn.Module):
    """`ResidualAttentionBlock` with explicit attention."""

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        attention = block.attn
        self.heads = attention.heads
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, _scaled_key(attention), attention.v_proj
        self.out_proj = attention.out_proj
        self.ln_1, self.mlp, self.ln_2 = block.ln_1, block.mlp, block.ln_2

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        """(B, L, width) and the causal penalty (L, L) -> (B, L, width)."""
        normed = self.ln_1(x)
        query = split_heads(self.q_proj(normed), self.heads)
        key = split_heads(self.k_proj(normed), self.heads).transpose(2, 3)
        value = split_heads(self.v_proj(normed), self.heads)
        x = x + self.out_proj(attend(query, key, value, causal))
        fed_forward: Tensor = self.mlp(self.ln_2(x))
        return x + fed_forward


class DeployTextEncoder(nn.Module):
    """Everything that depends on the prompt alone, up to the projector's kernel."""

    input_names = ("tokens",)

    positions: Tensor
    causal: Tensor
    order: Tensor
    word_positions: Tensor

    def __init__(self, model: Parts) -> None:
        super().__init__()
        architecture, clip, neck = model.architecture, model.backbone, model.neck
        length, width = architecture.word_len, architecture.text_width
        self.decoder_heads = architecture.decoder_heads
        self.token_embedding = clip.token_embedding
        self.blocks = nn.ModuleList(
            DeployTextBlock(typed(block, ResidualAttentionBlock)) for block in clip.transformer.resblocks
        )
        self.ln_final = clip.ln_final
        self.register_buffer("positions", clip.positional_embedding[:length].detach().clone())
        self.register_buffer("causal", torch.full((length, length), UNSEEN).triu(1))
        self.register_buffer("order", torch.arange(length).unsqueeze(0))
        self.register_buffer("word_positions", word_positions(length, width))
        self.text_projection = linear(clip.text_projection.T, None)

        scale, shift = scale_and_shift(neck.txt_proj[1])
        self.txt_proj = linear(typed(neck.txt_proj[0], nn.Linear).weight * scale[:, None], shift)
        # ReLU first, then the factor of the norm that follows the product of image and sentence.
        self.gate_scale = nn.Parameter(scale_and_shift(neck.norm_layer[0])[0][:, None, None], requires_grad=False)

        attentions = [typed(layer, DecoderLayer).multihead_attn for layer in model.decoder.layers]
        self.key_projections = nn.ModuleList(_scaled_key(attention) for attention in attentions)
        self.value_projections = nn.ModuleList(attention.v_proj for attention in attentions)

        self.kernel_channels = width // 2
        self.has_presence = model.presence is not None
        if model.presence is not None:
            self.presence_norm, self.presence_text = model.presence.norm, model.presence.text
        self.contrastive = architecture.contrastive
        if self.contrastive:
            self.kernel, self.tap_bias, self.bias = self._kernel(model)

    @staticmethod
    def _kernel(model: Parts) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Compose `proj.txt` with the 1x1 convolution that follows; rows are tap-major.

        With W, b the 1x1 convolution and k_t the sentence's kernel at tap t: k_t (W x + b) = (k_t W) x + k_t b.
        """
        text, last = model.proj.txt, typed(model.proj.vis[4], nn.Conv2d)
        assert last.bias is not None
        half = last.out_channels
        weight = text.weight[:-1].reshape(half, 9, -1)  # (C/2, tap, embed), channel-major as checkpoints have it
        bias = text.bias[:-1].reshape(half, 9)
        mix = last.weight.flatten(1)  # (C/2 out, C/2 in)
        kernel = linear(
            torch.einsum("cte,ci->tie", weight, mix).flatten(0, 1), torch.einsum("ct,ci->ti", bias, mix).flatten()
        )
        tap_bias = linear(torch.einsum("cte,c->te", weight, last.bias), torch.einsum("ct,c->t", bias, last.bias))
        return kernel, tap_bias, linear(text.weight[-1:], text.bias[-1:])

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns, in order."""
        words = ("word_keys", "word_values", "padding_penalty") if len(self.key_projections) else ()
        presence = ("presence_query",) if self.has_presence else ()
        kernel = ("kernel", "tap_bias", "bias") if self.contrastive else ()
        return ("sentence_scale", *words, *presence, *kernel)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, L) int64 -> the tensors named by `output_names`.

        sentence_scale (B, D, 1, 1), D = neck_widths[2]; word_keys (B, n, heads, d, L), scaled by 1/sqrt(d); word_values
        (B, n, heads, L, d); padding_penalty (B, 1, 1, L), 0 or 1e4; presence_query (B, 2 C); kernel
        (B, 9, C/2), one row a tap; tap_bias (B, 9, 1); bias (B, 1, 1, 1).
        """
        x = self.token_embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x, self.causal)
        words = self.ln_final(x)  # (B, L, C)
        # The row at the end token, the largest id, picked by a weighted sum: gathering rows is not for every device,
        # and a matrix product keeps fewer bits of it on an NPU in 16 bits (docs/npu.md). The sum keeps its dimension,
        # because OpenVINO 2026.4.1 fuses one that does not with SmoothQuant's factors, and then multiplies wrongly.
        end = (self.order == tokens.argmax(dim=1, keepdim=True)).to(words.dtype)  # (B, L)
        sentence = self.text_projection((end.unsqueeze(2) * words).sum(1, keepdim=True).squeeze(1))  # (B, E)

        outputs = [F.relu(self.txt_proj(sentence))[:, :, None, None] * self.gate_scale]
        if len(self.key_projections):
            placed = words + self.word_positions
            keys = [split_heads(project(placed), self.decoder_heads) for project in self.key_projections]
            values = [split_heads(project(words), self.decoder_heads) for project in self.value_projections]
            padding = (tokens == 0).to(words.dtype) * UNSEEN
            outputs += [torch.stack(keys, 1).transpose(3, 4), torch.stack(values, 1), padding[:, None, None, :]]
        if self.has_presence:
            outputs.append(self.presence_text(self.presence_norm(sentence)))
        if self.contrastive:
            outputs += [
                self.kernel(sentence).unflatten(1, (9, self.kernel_channels)),
                self.tap_bias(sentence).unsqueeze(2),
                self.bias(sentence)[:, :, None, None],
            ]
        return tuple(outputs)


class DeployDecoderLayer(nn.Module):
    """`DecoderLayer` with explicit attention; keys and values of the words are inputs."""

    positions: Tensor

    def __init__(self, layer: DecoderLayer, positions: Tensor) -> None:
        super().__init__()
        own, cross = layer.self_attn, layer.multihead_attn
        self.heads = own.heads
        self.register_buffer("positions", positions)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = own.q_proj, _scaled_key(own), own.v_proj, own.out_proj
        self.cross_q_proj, self.cross_out_proj = cross.q_proj, cross.out_proj
        self.self_attn_norm, self.cross_attn_norm = layer.self_attn_norm, layer.cross_attn_norm
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        fc1, relu, _, norm, fc2 = layer.ffn
        self.ffn = nn.Sequential(fc1, relu, norm, fc2)

    def forward(self, v: Tensor, word_keys: Tensor, word_values: Tensor, padding_penalty: Tensor) -> Tensor:
        """Image tokens (B, N, C), keys (B, heads, d, L), values (B, heads, L, d) -> (B, N, C)."""
        x = self.norm1(v)
        placed = x + self.positions
        query = split_heads(self.q_proj(placed), self.heads)
        key = split_heads(self.k_proj(placed), self.heads).transpose(2, 3)
        value = split_heads(self.v_proj(x), self.heads)
        v = v + self.self_attn_norm(self.out_proj(attend(query, key, value)))
        query = split_heads(self.cross_q_proj(self.norm2(v) + self.positions), self.heads)
        attended = self.cross_out_proj(attend(query, word_keys, word_values, padding_penalty))
        v = v + self.cross_attn_norm(attended)
        fed_forward: Tensor = self.ffn(self.norm3(v))
        return v + fed_forward


class DeployPresence(nn.Module):
    """The part of `PresenceHead` that depends on the image."""

    def __init__(self, head: PresenceHead) -> None:
        super().__init__()
        self.pixel, self.hidden, self.out = head.pixel, head.hidden, head.out

    forward = PresenceHead.decide


class DeployMaskDecoder(nn.Module):
    """Everything that depends on image and prompt: the rest of the neck, the decoder, the projector."""

    place: Tensor

    def __init__(self, model: Parts) -> None:
        super().__init__()
        architecture, neck, projector = model.architecture, model.neck, model.proj
        self.grid = grid = architecture.input_size // 16
        self.channels = channels = architecture.text_width
        self.gate_shift = nn.Parameter(scale_and_shift(neck.norm_layer[0])[1][:, None, None], requires_grad=False)
        f2_cat, f3_cat, aggr = (fold_block(cat) for cat in (neck.f2_cat, neck.f3_cat, neck.aggr))
        self.f2_cat = conv(f2_cat.weight[:, channels:], None)
        self.f3_cat = conv(f3_cat.weight[:, architecture.neck_widths[0] :], None)
        self.f4_proj3 = fold_block(neck.f4_proj3)
        self.f4_proj4 = fold_block(neck.f4_proj4)
        self.f4_proj5 = fold_block(neck.f4_proj5)
        self.aggr = conv(aggr.weight[:, : 2 * channels], aggr.bias)
        self.aggr5 = conv(aggr.weight[:, 2 * channels :], None)

        coord = fold_block(typed(neck.coordconv[0], CoordConv).conv1)
        self.coordconv1 = conv(coord.weight[:, :channels], None, padding=1)
        place = F.conv2d(coordinates(grid, grid), coord.weight[:, channels:], coord.bias, padding=1)
        self.register_buffer("place", place)
        self.coordconv2 = fold_block(neck.coordconv[1])

        positions = image_positions(grid, grid, channels)
        self.layers = nn.ModuleList(
            DeployDecoderLayer(typed(layer, DecoderLayer), positions) for layer in model.decoder.layers
        )
        self.norm = model.decoder.norm
        self.presence = None if model.presence is None else DeployPresence(model.presence)

        self.vis1: nn.Module = fold_block(projector.vis[1])
        self.vis2: nn.Module = fold_block(projector.vis[3])
        self.contrastive = architecture.contrastive
        if not self.contrastive:
            self.vis3, self.kernel = projector.vis[4], projector.kernel

    def at_resolution(self, resolution: Resolution) -> DeployMaskDecoder:
        """The same function with the projector's convolutions in another form; all other weights are shared.

        Args:
            resolution: Where their products are taken: ``full``, as in training; ``half`` (`HalfResolution`), ``low``
                (`LowResolution`).
        """
        if resolution == "full":
            return self
        assert isinstance(self.vis1, nn.Conv2d) and isinstance(self.vis2, nn.Conv2d), "it is in such a form already"
        form = HalfResolution if resolution == "half" else LowResolution
        other = copy.copy(self)
        other._modules = dict(self._modules)  # nn.Module's own copy would put the new layers into both
        other.vis1, other.vis2 = form(self.vis1, self.grid), form(self.vis2, 2 * self.grid)
        return other

    @property
    def resolution(self) -> Resolution:
        """Where the projector's products are taken, see `at_resolution`."""
        if isinstance(self.vis2, LowResolution):
            return "low"
        return "half" if isinstance(self.vis2, HalfResolution) else "full"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs of `forward`, in order."""
        words = ("word_keys", "word_values", "padding_penalty") if len(self.layers) else ()
        presence = ("presence_query",) if self.presence is not None else ()
        kernel = ("kernel", "tap_bias", "bias") if self.contrastive else ()
        return ("visual5", "visual4", "visual3", "sentence_scale", *words, *presence, *kernel)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs of `forward`, in order."""
        return ("logits",) if self.presence is None else ("logits", "presence")

    def forward(
        self, visual5: Tensor, visual4: Tensor, visual3: Tensor, sentence_scale: Tensor, *sentence: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Outputs of the encoders, in the order of `input_names` -> logits (B, 1, S/4, S/4), presence logits (B, 1)."""
        fused = self.neck(visual5, visual4, visual3, sentence_scale)
        v = fused.flatten(2).transpose(1, 2)  # (B, N, C)
        if len(self.layers):
            word_keys, word_values, padding_penalty = sentence[:3]
            for number, layer in enumerate(self.layers):
                v = layer(v, word_keys[:, number], word_values[:, number], padding_penalty)
        decoded = self.norm(v)
        x = self.visual(decoded)
        logits: Tensor = self.correlate(x, *sentence[-3:]) if self.contrastive else self.kernel(self.vis3(x))
        if self.presence is None:
            return logits
        return logits, self.presence(decoded, sentence[3 if len(self.layers) else 0])

    def visual(self, decoded: Tensor) -> Tensor:
        """The projector's convolutions: tokens (B, N, C) -> (B, C/2, S/4, S/4)."""
        x: Tensor
        if self.resolution == "low":
            x = self.vis2(self.vis1(decoded)).transpose(1, 2)
            return _to_map(x, 4 * self.grid)
        x = _to_map(decoded.transpose(1, 2), self.grid)
        if self.resolution == "half":
            x = self.vis2(self.vis1(x))
            return x
        x = F.relu(self.vis1(upsample2(x)))
        return F.relu(self.vis2(upsample2(x)))

    def neck(self, visual5: Tensor, visual4: Tensor, visual3: Tensor, sentence_scale: Tensor) -> Tensor:
        """Compute the part of the neck that depends on the sentence: (B, C, S/16, S/16)."""
        f5 = F.relu(visual5 * sentence_scale + self.gate_shift)
        f4 = F.relu(visual4 + upsample2(self.f2_cat(f5)))
        f3 = F.relu(visual3 + self.f3_cat(f4))
        near = torch.cat((F.relu(self.f4_proj3(f3)), F.relu(self.f4_proj4(f4))), dim=1)
        far = self.aggr5(F.relu(self.f4_proj5(f5)))
        aggregated = F.relu(self.aggr(near) + upsample2(far))
        return F.relu(self.coordconv2(F.relu(self.coordconv1(aggregated) + self.place)))

    def correlate(self, x: Tensor, kernel: Tensor, tap_bias: Tensor, bias: Tensor) -> Tensor:
        """3x3 convolution of x (B, C/2, H, W) with a kernel per sentence, as nine shifted sums: (B, 1, H, W)."""
        side = 4 * self.grid
        taps = torch.matmul(kernel, x.flatten(2)) + tap_bias  # (B, 9, H W)
        taps = F.pad(_to_map(taps, side), (1, 1, 1, 1))  # beyond the border there is no tap's constant
        logits = bias
        for tap in range(9):
            row, column = divmod(tap, 3)
            logits = logits + taps[:, tap : tap + 1, row : row + side, column : column + side]
        return logits
