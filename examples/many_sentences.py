"""Several sentences about one picture: the picture is encoded once, each sentence costs a little.

python examples/many_sentences.py photo.jpg "left dog" "right dog" "the bench"
"""

import sys
from time import perf_counter

from cris_edge import Segmenter


def main(picture: str, *sentences: str) -> None:
    with Segmenter() as segmenter:
        print(segmenter.info)
        start = perf_counter()
        scene = segmenter.encode_image(picture)
        print(f"picture: {1000 * (perf_counter() - start):.1f} ms")
        for sentence in sentences:
            start = perf_counter()
            result = segmenter(scene, sentence)
            milliseconds = 1000 * (perf_counter() - start)
            print(f"{sentence}: {milliseconds:.1f} ms, score {result.score:.2f}, box {result.box}")


if __name__ == "__main__":
    main(*sys.argv[1:])
