from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_edge import Segmenter
from cris_edge.bundle import FORMAT, Bundle, Manifest
from cris_edge.bundle.manifest import STATISTICS, PresenceSpec
from cris_edge.bundle.presence import calibrated_presence, logit_statistics, presence_of, sigmoid
from cris_edge.errors import BundleError, OptionError

# Present where the largest logit is above 5.
PEAK = {"intercept": -2.0, **dict.fromkeys(STATISTICS, 0.0), "peak": 0.4}


def plain(tiny: Path, **changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tiny / "manifest.json").read_text(encoding="utf-8"))
    return document | changes


def calibrated(folder: Path, tiny: Path, **changes: Any) -> Path:
    """The tiny bundle with a calibration."""
    target = folder / "calibrated"
    shutil.copytree(tiny, target)
    presence = {"source": "calibration", "min_presence": 0.5, "coefficients": PEAK} | changes
    document = plain(tiny, presence=presence)
    (target / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return target


def test_statistics_by_hand() -> None:
    logits = np.full((1, 1, 10, 10), -2.0, np.float32)
    logits[0, 0, 0, :4] = (3.0, 1.0, 1.0, 1.0)
    peak, top, mean, inside, area, certain = logit_statistics(logits)
    assert (peak, top) == (3.0, 3.0)  # 1 % of 100 pixels is one
    assert mean == pytest.approx((3 + 3 - 96 * 2) / 100)
    assert inside == pytest.approx(6 / 4)
    assert area == pytest.approx(math.log(5 / 100))
    distances = [abs(sigmoid(value) - 0.5) for value in (3, 1, 1, 1, *[-2] * 96)]
    assert certain == pytest.approx(2 * sum(distances) / 100)
    assert len(STATISTICS) == 6


def test_statistics_of_nothing_and_of_infinities_are_finite() -> None:
    for value in (-np.inf, np.inf, 0.0, 1e30):
        assert np.isfinite(logit_statistics(np.full((1, 1, 8, 8), value))).all()
    assert sigmoid(-1000) == 0.0 and sigmoid(1000) == 1.0


def test_each_source_has_its_own_computation() -> None:
    outputs = {"logits": np.full((1, 1, 8, 8), 3.0, np.float32), "presence": np.array([[-1.0]], np.float32)}
    assert presence_of(outputs, None) is None
    assert presence_of(outputs, PresenceSpec("head", 0.5)) == pytest.approx(sigmoid(-1))
    assert presence_of(outputs, PresenceSpec("calibration", 0.5, PEAK)) == pytest.approx(sigmoid(-0.8))
    assert calibrated_presence(outputs["logits"], PEAK) == pytest.approx(sigmoid(-0.8))


def test_format_1_still_loads(tiny: Path) -> None:
    manifest = Manifest.from_dict(plain(tiny, format=1, precision="fp32"))
    assert (manifest.format, manifest.precision, manifest.presence) == (1, "float32", None)
    assert Manifest.from_dict(plain(tiny, format=1, precision="fp16")).precision == "float16"
    assert FORMAT == 2 and Manifest.from_dict(plain(tiny)).format == 2


def test_a_manifest_with_presence_survives_a_round_trip(tiny: Path) -> None:
    presence = {"source": "calibration", "min_presence": 0.4, "coefficients": PEAK, "metrics": {"AUROC": 97.5}}
    manifest = Manifest.from_dict(plain(tiny, presence=presence))
    assert manifest.presence == PresenceSpec("calibration", 0.4, PEAK, {"AUROC": 97.5})
    assert manifest.to_dict()["presence"] == presence
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    assert "presence" not in Manifest.from_dict(plain(tiny)).to_dict() or plain(tiny).get("presence") is None


@pytest.mark.parametrize(
    ("presence", "words"),
    [
        ({"source": "guess", "min_presence": 0.5}, "source 'guess'"),
        ({"source": "head", "min_presence": 1.5}, "min_presence 1.5"),
        ({"source": "calibration", "min_presence": 0.5}, "the coefficients none"),
        ({"source": "calibration", "min_presence": 0.5, "coefficients": PEAK | {"peak": math.inf}}, "finite"),
        ({"source": "head", "min_presence": 0.5}, r"expected logits .*, presence float32\[1, 1\]"),
        ({"source": "head"}, "lacks 'presence.min_presence'"),
    ],
)
def test_a_wrong_presence_is_named(tiny: Path, presence: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        Manifest.from_dict(plain(tiny, presence=presence))


def test_the_segmenter_applies_the_level(tiny: Path, tmp_path: Path, runtime: str) -> None:
    from tests.cris_edge.tiny_bundle import picture

    image = picture("red", "blue")
    path = calibrated(tmp_path, tiny)
    with Segmenter(path, runtime=runtime) as segmenter:
        there, gone = segmenter(image, ["the red one", "something green"])
        assert there.matched and there.presence > 0.99 and there.min_presence == 0.5
        assert gone.presence < 0.5 and gone.empty and gone.score == 0.0
        assert gone.probability.shape == gone.mask.shape
        off = segmenter(image, "something green", min_presence=0)
        assert off.presence == pytest.approx(gone.presence) and off.min_presence == 0
        np.testing.assert_array_equal(off.probability, gone.probability)
        assert segmenter(image, "the red one", min_presence=1.0).empty
        assert [r.matched for r in segmenter.stream([image, image], "the red one", min_presence=1.0)] == [False, False]
        for wrong in (-0.1, 1.1, True, "0.5"):
            with pytest.raises(OptionError, match="min_presence is"):
                segmenter(image, "red", min_presence=wrong)
    with Segmenter(path, runtime=runtime, min_presence=1.0) as strict:
        assert strict(image, "the red one").empty
        assert strict(image, "the red one", min_presence=0.5).matched


def test_a_bundle_without_presence_refuses_a_level(tiny: Path, runtime: str) -> None:
    from tests.cris_edge.tiny_bundle import picture

    with pytest.raises(OptionError, match="does not report presence"):
        Segmenter(tiny, runtime=runtime, min_presence=0.5)
    with Segmenter(tiny, runtime=runtime, min_presence=0) as segmenter:
        result = segmenter(picture("red", "blue"), "the red one")
        assert result.presence is None and result.matched
        with pytest.raises(OptionError, match="does not report presence"):
            segmenter(picture("red", "blue"), "red", min_presence=0.5)


def test_short_spellings_of_precisions(tiny: Path, runtime: str) -> None:
    with Segmenter(Bundle.open(tiny), runtime=runtime, precision="fp32") as segmenter:
        assert segmenter.info.precision == "float32"
