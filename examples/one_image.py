"""Segment one image with one prompt, print the result and write an overlay next to the image.

python examples/one_image.py photo.jpg "the man in the red shirt"
"""

import sys
from pathlib import Path

from cris_edge import Segmenter


def main(image: str, prompt: str) -> None:
    with Segmenter() as segmenter:
        result = segmenter(image, prompt)
    if result.empty:
        print(f"nothing found for {prompt!r}")
        return
    print(f"box {result.box}, {result.area} pixels, score {result.score:.2f}")
    print("seconds:", {stage: round(seconds, 4) for stage, seconds in result.timings.items()})
    print("written:", result.save(Path(image).with_suffix(".overlay.png")))


if __name__ == "__main__":
    main(*sys.argv[1:])
