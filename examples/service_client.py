"""Ask a running service (`cris-edge serve`) several prompts about one image, which is sent once.

python examples/service_client.py photo.jpg "the man in the red shirt" "the dog"
"""

import os
import sys
from pathlib import Path

import httpx


def main(image: str, *prompts: str) -> None:
    url = os.environ.get("CRIS_EDGE_URL", "http://127.0.0.1:8000")
    with httpx.Client(base_url=url, timeout=30) as client:
        kept = client.post("/v1/images", files={"image": Path(image).read_bytes()}).raise_for_status()
        question = {"prompts": prompts, "format": "polygons"}
        answer = client.post(f"{kept.headers['location']}/segment", json=question).raise_for_status()
    for result in answer.json()["results"]:
        print(result["prompt"], "box", result["box"], "score", round(result["score"], 2))


if __name__ == "__main__":
    main(*sys.argv[1:])
