"""Named run configurations.

``r50`` and ``r101`` are the paper's (arXiv 2111.15174, section 4.1). The others are smaller networks of the same
architecture; ``*-scenes`` trains one of them on synthetic scenes, which need no download. ``finetune`` continues any of
them on your own images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cris_edge.errors import OptionError
from training.config import DataConfig, LoopConfig, OptimizerConfig, RunConfig
from training.model import Architecture


def r50() -> RunConfig:
    """CRIS-R50 as in the paper: 416 pixels, 17 tokens (22 for G-Ref), batch 64, Adam 1e-4, x0.1 at epoch 35 of 50."""
    return RunConfig(name="r50")


def r101() -> RunConfig:
    """CRIS-R101 as in the paper: CLIP's RN101 (23 blocks in stage three, embedding 512) with the neck of R50."""
    architecture = Architecture(vision_layers=(3, 4, 23, 3), embed_dim=512, neck_width5=1024)
    return RunConfig(name="r101", architecture=architecture)


def finetune() -> RunConfig:
    """Fine-tuning of any CRIS checkpoint, ``--init FILE``, with its architecture.

    Small steps and frozen batch norm: a few hundred images are too few for statistics of their own.
    """
    optimizer = OptimizerConfig(
        optimizer="adamw",
        learning_rate=5e-5,
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=50,
        clip_norm=1.0,
        ema_decay=0.99,
    )
    loop = LoopConfig(
        epochs=10, batch_size=8, freeze_batch_norm=True, channels_last=True, validate_every=200, checkpoint_every=100
    )
    data = DataConfig(sentences_per_image=2, flip=0.5, jitter=0.2)
    return RunConfig(name="finetune", data=data, optimizer=optimizer, loop=loop)


def r50_grefcoco() -> RunConfig:
    """CRIS-R50 for the generalized task: trained on gRefCOCO, with a presence head.

    gRefCOCO's sentences match one object, several or none. Further negatives are drawn from other images.
    """
    architecture = Architecture(word_len=22, presence=True)
    return RunConfig(name="r50-grefcoco", architecture=architecture, data=DataConfig(negatives=0.1))


def ablation(contrastive: bool, decoder_layers: int) -> Callable[[], RunConfig]:
    """Return the recipe for a row of the paper's efficiency ablation (table 2)."""

    def recipe() -> RunConfig:
        name = f"r50-{'' if contrastive else 'no-'}contrastive-n{decoder_layers}"
        return RunConfig(name=name, architecture=Architecture(contrastive=contrastive, decoder_layers=decoder_layers))

    return recipe


def small() -> RunConfig:
    """The largest compact network: 320 pixels, 256 channels, three decoder layers."""
    return _compact(
        "small",
        input_size=320,
        image_resolution=320,
        vision_layers=(2, 3, 4, 2),
        vision_width=32,
        embed_dim=512,
        text_width=256,
        text_layers=6,
        decoder_heads=8,
        ffn_dim=1024,
        dropout=0.1,
    )


def tiny() -> RunConfig:
    """The size of the default model: 224 pixels, 128 channels, three decoder layers."""
    return _compact("tiny", vision_layers=(2, 2, 3, 2), vision_width=24, embed_dim=256, text_width=128, ffn_dim=512)


def nano() -> RunConfig:
    """The smallest network: 224 pixels, 64 channels, a stem of width 12, two decoder layers."""
    return _compact(
        "nano",
        learning_rate=1.5e-3,
        vision_layers=(1, 1, 2, 1),
        vision_width=12,
        embed_dim=128,
        text_width=64,
        decoder_layers=2,
        ffn_dim=256,
    )


def _compact(name: str, *, learning_rate: float = 1e-3, **fields: Any) -> RunConfig:
    """Return the configuration of a network that is trained from scratch."""
    defaults = {"input_size": 224, "image_resolution": 224, "text_layers": 3, "decoder_heads": 4, "dropout": 0.0}
    optimizer = OptimizerConfig(
        optimizer="adamw",
        learning_rate=learning_rate,
        backbone_scale=1.0,
        weight_decay=0.02,
        beta2=0.98,
        schedule="cosine",
        warmup_steps=300,
        clip_norm=1.0,
        ema_decay=0.998,
    )
    loop = LoopConfig(precision="bfloat16", channels_last=True)
    return RunConfig(name=name, architecture=Architecture(**{**defaults, **fields}), optimizer=optimizer, loop=loop)


def on_scenes(member: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Return the recipe that trains ``member`` on synthetic scenes within a few hours on two CPU cores."""

    def recipe() -> RunConfig:
        run = member()
        data = DataConfig(
            train="scenes:train:::generalized",
            val="scenes:val:120:1:generalized",
            sentences_per_image=4,
            workers=1,
            mask_target="area",
        )
        optimizer = replace(run.optimizer, dice_weight=1.0)
        loop = replace(
            run.loop,
            steps=11700,
            batch_size=16,
            sizes=(128, 160, run.architecture.input_size),
            size_shares=(3500, 3200, 5000),  # in steps
            validate_every=1600,
            checkpoint_every=100,
            log_every=25,
        )
        architecture = replace(run.architecture, presence=True)
        name = f"{run.name}-scenes"
        return replace(run, name=name, architecture=architecture, data=data, optimizer=optimizer, loop=loop)

    return recipe


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "r50": r50,
    "r101": r101,
    "r50-grefcoco": r50_grefcoco,
    "small": small,
    "tiny": tiny,
    "nano": nano,
    "small-scenes": on_scenes(small),
    "tiny-scenes": on_scenes(tiny),
    "nano-scenes": on_scenes(nano),
    "finetune": finetune,
    **{f"r50-contrastive-n{n}": ablation(True, n) for n in range(5)},
    **{f"r50-no-contrastive-n{n}": ablation(False, n) for n in range(5)},
}
"""All recipes by name."""


def recipe(name: str) -> RunConfig:
    """Return the run configuration of a recipe.

    Raises:
        OptionError: The recipe is unknown.
    """
    if name not in RECIPES:
        raise OptionError(f"Unknown recipe {name!r}. Available: {', '.join(RECIPES)}, or the path of a config.json.")
    return RECIPES[name]()
