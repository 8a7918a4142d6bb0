"""Segment one image with several prompts: the image is encoded once, so that each further prompt is cheap.

python examples/many_prompts.py photo.jpg "left dog" "right dog" "the bench"
"""

import sys
from time import perf_counter

from cris_edge import Segmenter


def main(image: str, *prompts: str) -> None:
    with Segmenter() as segmenter:
        print(segmenter.info)
        start = perf_counter()
        features = segmenter.encode_image(image)
        print(f"image: {1000 * (perf_counter() - start):.1f} ms")
        for prompt in prompts:
            start = perf_counter()
            result = segmenter(features, prompt)
            milliseconds = 1000 * (perf_counter() - start)
            print(f"{prompt}: {milliseconds:.1f} ms, score {result.score:.2f}, box {result.box}")


if __name__ == "__main__":
    main(*sys.argv[1:])
