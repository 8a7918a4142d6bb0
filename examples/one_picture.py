"""One picture, one sentence: print what was found and write an overlay beside the picture.

python examples/one_picture.py photo.jpg "the man in the red shirt"
"""

import sys
from pathlib import Path

from cris_edge import Segmenter


def main(picture: str, sentence: str) -> None:
    with Segmenter() as segmenter:
        result = segmenter(picture, sentence)
    if result.empty:
        print(f"nothing here is {sentence!r}")
        return
    print(f"box {result.box}, {result.area} pixels, score {result.score:.2f}")
    print("seconds:", {stage: round(seconds, 4) for stage, seconds in result.timings.items()})
    print("written:", result.save(Path(picture).with_suffix(".overlay.png")))


if __name__ == "__main__":
    main(*sys.argv[1:])
