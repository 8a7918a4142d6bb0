from __future__ import annotations

import numpy as np

from cris_edge.backends.features import ImageFeatures
from cris_edge.image import Letterbox
from cris_edge.serve.kept_images import KeptImages


def features(side: int) -> ImageFeatures:
    return ImageFeatures("digest", np.zeros((side, side, 3), np.uint8), Letterbox.fit(side, side, 32), {})


def test_the_least_recently_used_goes_first() -> None:
    kept = KeptImages(2 * 300, 60)
    first, second = kept.add(features(10)), kept.add(features(10))
    assert kept.get(first) is not None  # used again
    third = kept.add(features(10))
    assert kept.get(second) is None
    assert kept.get(first) is not None and kept.get(third) is not None
    assert (len(kept), kept.size) == (2, 600)


def test_unused_images_expire_and_use_starts_the_time_again() -> None:
    now = [0.0]
    kept = KeptImages(10_000, 60, clock=lambda: now[0])
    used, unused = kept.add(features(10)), kept.add(features(10))
    now[0] = 50
    assert kept.get(used) is not None
    now[0] = 70
    assert kept.get(unused) is None
    assert kept.get(used) is not None
    assert kept.size == 300


def test_an_image_larger_than_the_limit_is_kept_alone() -> None:
    kept = KeptImages(100, 60)
    first = kept.add(features(10))
    second = kept.add(features(20))
    assert kept.get(first) is None and kept.get(second) is not None


def test_ids_are_not_guessable() -> None:
    kept = KeptImages(1 << 20, 60)
    names = {kept.add(features(1)) for _ in range(100)}
    assert len(names) == 100 and all(len(name) >= 20 for name in names)
    assert not kept.remove("another")
