"""Long runs that look for crashes, hangs, leaks and half-written files: ``python -m tests.soak PART``.

Each part is bounded by an option and prints one JSON object; docs/reliability.md holds the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT.parent / "shared" / "data" / "inputs"
HANG = 20.0  # seconds without progress
GROWTH = 0.02  # of resident memory

Case = Callable[[random.Random], object]


def main(arguments: list[str] | None = None) -> int:
    """Run one part and print its result."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    hostile = parts.add_parser("hostile", help="hostile inputs of each kind")
    hostile.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    hostile.add_argument("--seed", type=int, default=0)
    hostile.add_argument("--kinds", nargs="*", default=QUICK, choices=list(KINDS))
    worker = parts.add_parser("worker", help="one kind in this process; used by hostile")
    worker.add_argument("kind", choices=list(KINDS))
    worker.add_argument("progress", type=Path)
    worker.add_argument("start", type=int)
    worker.add_argument("stop", type=int)
    worker.add_argument("seed", type=int)
    threads = parts.add_parser("threads", help="many predictions by many threads on one Segmenter")
    threads.add_argument("--count", type=int, default=2400, help="predictions per runtime")
    threads.add_argument("--threads", type=int, default=24)
    threads.add_argument("--runtimes", nargs="*", default=["onnxruntime", "openvino"])
    kill = parts.add_parser("kill", help="SIGKILL at random moments of writing")
    kill.add_argument("--count", type=int, default=10, help="kills of each job")
    kill.add_argument("--seed", type=int, default=0)
    peers = parts.add_parser("peers", help="pycocotools on our RLE")
    peers.add_argument("--count", type=int, default=1000, help="masks")
    given = parser.parse_args(arguments)
    if given.part == "worker":
        return run_cases(given.kind, given.progress, range(given.start, given.stop), given.seed)
    started = time.monotonic()
    result: dict[str, Any] = {
        "hostile": lambda: run_hostile(given.kinds, given.count, given.seed),
        "threads": lambda: run_threads(given.runtimes, given.count, given.threads),
        "kill": lambda: run_kills(given.count, given.seed),
        "peers": lambda: run_peers(given.count),
    }[given.part]()
    failed = bool(result.pop("failures"))
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    print(json.dumps({"part": given.part, **result, "seconds": round(time.monotonic() - started, 1), **machine}))
    return int(failed)


# --- hostile inputs ---------------------------------------------------------------------------------------------------


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        at = draw.randrange(len(found))
        match draw.randrange(6):
            case 0:
                found[at] = draw.randrange(256)
            case 1:
                found[at] ^= 1 << draw.randrange(8)
            case 2:
                del found[at : at + draw.choice((1, 4, 100))]
            case 3:
                found[at:at] = found[at : at + draw.choice((1, 8, 64))]
            case 4:
                found[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
            case _:
                del found[draw.randrange(len(found)) :]
    return bytes(found)


def image_case() -> Case:
    """Mutated image files."""
    import cv2

    from cris_edge.image import load_image

    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    seeds = [cv2.imencode(suffix, noise)[1].tobytes() for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm")]
    if SEEDS.is_dir():
        seeds += [
            path.read_bytes() for path in sorted(SEEDS.iterdir()) if path.is_file() and path.stat().st_size < 1 << 16
        ]
    return lambda draw: load_image(mutated(draw, draw.choice(seeds)))


def tokenizer_case() -> Case:
    """Text of any code points, and of none."""
    from cris_edge.tokenizer import Tokenizer

    tokenizer = Tokenizer()

    def case(draw: random.Random) -> None:
        pieces = [
            chr(draw.choice((draw.randrange(0x110000), draw.randrange(0x3000), draw.randrange(128))))
            for _ in range(draw.choice((0, 1, 5, 40, 300)))
        ]
        tokens = tokenizer("".join(pieces), length=draw.choice((17, 22, 3)))
        assert tokens.dtype == np.int64 and tokens.min() >= 0 and tokens.max() < tokenizer.vocabulary

    return case


def damaged(draw: random.Random, value: Any) -> Any:
    """Return a JSON value with one part replaced."""
    junk: tuple[Any, ...] = (None, -1, 0, 1e308, 2**70, "", "../x", [], {}, True, "x" * 5000, [[[]]], float("nan"))
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: damaged(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], damaged(draw, value[at]), *value[at + 1 :]]
    return draw.choice(junk)


def manifest_case() -> Case:
    """Damaged manifests."""
    from cris_edge.bundle import Manifest, default_model

    document = json.loads((default_model() / "manifest.json").read_bytes())
    return lambda draw: Manifest.from_dict(damaged(draw, document))


def onnx_case() -> Case:
    """Mutated graphs."""
    from cris_edge.bundle import default_model
    from cris_edge.bundle.onnx_header import read_onnx_header

    data = (default_model() / "onnx" / "mask_decoder.onnx").read_bytes()[-60_000:]
    head = (default_model() / "onnx" / "mask_decoder.onnx").read_bytes()[:2000]
    path = Path(tempfile.mkdtemp()) / "graph.onnx"

    def case(draw: random.Random) -> None:
        path.write_bytes(mutated(draw, draw.choice((head, data, head + data))))
        read_onnx_header(path)

    return case


def labelled_case() -> Case:
    """Damaged lines of labelled data."""
    from cris_edge.image.labelled import read_samples

    path = Path(tempfile.mkdtemp()) / "data.jsonl"
    rows: list[Any] = [
        {"image": "a.png", "sentences": ["red"], "mask": {"size": [4, 4], "counts": "04d0"}},
        {"image": "a.png", "sentences": ["red", "blue"], "mask": [[0, 0, 3, 0, 3, 3]]},
        {"image": "a.png", "sentences": ["none"], "mask": None},
    ]

    def case(draw: random.Random) -> None:
        line = json.dumps(damaged(draw, draw.choice(rows))).encode()
        path.write_bytes(mutated(draw, line) if draw.random() < 0.5 else line)
        for sample in read_samples(path, check_files=False):
            if sample.mask is not None:
                sample.truth((4, 4))

    return case


def rle_case() -> Case:
    """Run lengths of other sizes, and mutated text."""
    from cris_edge.image.coco import decode_rle, encode_rle

    def case(draw: random.Random) -> None:
        size = [draw.randrange(1, 40), draw.randrange(1, 40)]
        rle = encode_rle(np.random.default_rng(draw.randrange(1 << 30)).random(size) > draw.random())
        counts: Any = mutated(draw, rle["counts"].encode()).decode("latin-1")
        given = {"size": draw.choice((size, size[::-1], [1 << 30, 1 << 30], [-1, 2], [], "ab")), "counts": counts}
        decode_rle(given if draw.random() < 0.8 else damaged(draw, rle))

    return case


def options_case() -> Case:
    """Values of runtime options."""
    from cris_edge.backends.base import BackendOptions

    junk: tuple[Any, ...] = (
        None,
        "",
        "auto",
        "CPU",
        "cpu\0",
        -1,
        0,
        1,
        10**30,
        1.5,
        True,
        [],
        {},
        "latency",
        "float32",
        b"x",
    )

    def case(draw: random.Random) -> None:
        names = ("device", "precision", "threads", "hint")
        BackendOptions(**{name: draw.choice(junk) for name in names if draw.random() < 0.5})

    return case


def damaged_bundle_case() -> Case:
    """Files of a bundle with other bytes, and the hashes of the original: always refused."""
    from cris_edge.bundle import Bundle
    from cris_edge.errors import BundleError
    from tests.cris_edge.tiny_bundle import build

    folder = build(Path(tempfile.mkdtemp()) / "tiny")
    names = sorted(json.loads((folder / "manifest.json").read_bytes())["files"])

    def case(draw: random.Random) -> None:
        path = folder / draw.choice(names)
        original = path.read_bytes()
        changed = mutated(draw, original)
        try:
            path.write_bytes(changed)
            Bundle.open(folder, cache_dir=folder.parent / "cache")
            assert changed == original
        except BundleError:
            assert changed != original
        finally:
            path.write_bytes(original)

    return case


def forged_bundle_case() -> Case:
    """Other manifests and graphs, with the hashes renewed: an error, or a mask of the image's shape."""
    import hashlib

    import onnx

    from cris_edge import Segmenter
    from tests.cris_edge.tiny_bundle import build, picture

    folder = build(Path(tempfile.mkdtemp()) / "tiny")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    graphs = {name: (folder / name).read_bytes() for name in manifest["files"] if name.endswith(".onnx")}
    image = picture("red", "blue", 24, 40)

    def restructured(draw: random.Random, data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        graph = model.graph
        node = draw.choice(graph.node)
        match draw.randrange(7):
            case 0:
                node.op_type = draw.choice(graph.node).op_type
            case 1:
                graph.node.remove(node)
            case 2:
                node.input[0], node.domain = draw.choice(graph.node).output[0], draw.choice(("", "strange"))
            case 3 if graph.initializer:
                weights = draw.choice(graph.initializer)
                if weights.dims:
                    weights.dims[0] = draw.choice((0, -1, 1, 7, 1 << 20, 1 << 40))
            case 4 if node.attribute:
                attribute = draw.choice(node.attribute)
                attribute.i = draw.choice((-1, 0, 1, 99, 1 << 31, 1 << 62))
                attribute.ints[:] = [draw.choice((-1, 0, 1, 7, 1 << 31)) for _ in attribute.ints]
            case 5:
                side = draw.choice((*graph.input, *graph.output)).type.tensor_type.shape.dim[-1]
                side.dim_value = draw.choice((0, 1, 2, 64, 1 << 40))
            case _:
                return mutated(draw, data)
        return bytes(model.SerializeToString())

    def case(draw: random.Random) -> None:
        given = {**manifest, "files": dict(manifest["files"])}
        name = draw.choice(list(graphs))
        try:
            if draw.random() < 0.7:
                data = restructured(draw, graphs[name])
                (folder / name).write_bytes(data)
                given["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            else:
                given = damaged(draw, given)
            (folder / "manifest.json").write_text(json.dumps(given))
            runtime = draw.choice(("onnxruntime", "openvino"))
            with Segmenter(folder, runtime=runtime, cache_dir=None) as segmenter:
                result = segmenter(image, "red")
                assert result.mask.shape == image.shape[:2]
                assert np.isfinite(result.score)
        finally:
            (folder / name).write_bytes(graphs[name])

    return case


def selftest_case() -> Case:
    """A foreign error, a crash and a hang, to check that they are found."""

    def case(draw: random.Random) -> None:
        number = next(numbers)
        if number == 1:
            raise RuntimeError("foreign")
        if number == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 4:
            time.sleep(1000)

    numbers = iter(range(int(sys.argv[4]), 100))
    return case


KINDS: dict[str, Callable[[], Case]] = {
    "image": image_case,
    "tokenizer": tokenizer_case,
    "manifest": manifest_case,
    "onnx": onnx_case,
    "labelled": labelled_case,
    "rle": rle_case,
    "options": options_case,
    "damaged-bundle": damaged_bundle_case,
    "forged-bundle": forged_bundle_case,
    "selftest": selftest_case,
}
# Bundles take longer than the rest, and have their own counts.
QUICK = [kind for kind in KINDS if kind not in ("damaged-bundle", "forged-bundle", "selftest")]


def run_cases(kind: str, progress: Path, numbers: range, seed: int) -> int:
    """Run cases in this process; note the number of each before it runs, and print those that break the contract."""
    from cris_edge.errors import CrisEdgeError

    warnings.simplefilter("ignore")
    case = KINDS[kind]()
    with progress.open("r+b", buffering=0) as file:
        for number in numbers:
            file.seek(0)
            file.write(b"%20d" % number)
            try:
                case(random.Random(f"{kind} {seed} {number}"))
            except CrisEdgeError:
                pass
            except Exception:
                print(json.dumps({"kind": kind, "number": number, "trace": traceback.format_exc()[-1500:]}), flush=True)
        file.seek(0)
        file.write(b"%20d" % numbers.stop)
    return 0


def run_hostile(kinds: list[str], count: int, seed: int) -> dict[str, Any]:
    """Run every kind in a worker, restarted behind the case at which it dies or hangs."""
    table: dict[str, dict[str, int]] = {}
    failures: list[Any] = []
    for kind in kinds:
        row = table[kind] = {"executions": 0, "crashes": 0, "hangs": 0, "errors outside the tree": 0}
        with tempfile.TemporaryDirectory() as folder:
            progress, printed = Path(folder) / "progress", Path(folder) / "printed"
            start = 0
            while start < count:
                progress.write_bytes(b"%19d*" % start)  # until the imports are done
                command = [sys.executable, "-m", "tests.soak", "worker", kind, str(progress), str(start), str(count)]
                with printed.open("ab") as out:
                    process = subprocess.Popen([*command, str(seed)], cwd=ROOT, stdout=out, stderr=subprocess.DEVNULL)
                    hung = _watch(process, progress)
                reached = int(progress.read_bytes().rstrip(b"*"))
                if process.returncode == 0:
                    break
                row["hangs" if hung else "crashes"] += 1
                failures.append({"kind": kind, "number": reached, "status": process.returncode, "hung": hung})
                start = reached + 1
            row["executions"] = count
            outside = [json.loads(line) for line in printed.read_text().splitlines()]
            row["errors outside the tree"] = len(outside)
            failures += outside
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    return {"table": table, "executions": sum(row["executions"] for row in table.values()), "failures": failures}


def _watch(process: subprocess.Popen[bytes], progress: Path) -> bool:
    """Wait for a worker; kill it and return True if it stays at one case."""
    last, since = b"", time.monotonic()
    while process.poll() is None:
        now = progress.read_bytes()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > (60 if last.endswith(b"*") else HANG):
            process.kill()
            process.wait()
            return True
        time.sleep(0.05)
    return False


# --- threads ----------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_threads(runtimes: list[str], count: int, threads: int) -> dict[str, Any]:
    """Compare the masks of many threads with those of one, and memory after a fifth with that at the end."""
    from cris_edge import Segmenter
    from tests.cris_edge.tiny_bundle import build

    found: dict[str, Any] = {}
    failures: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(Path(folder) / "tiny")
        for runtime in runtimes:
            with Segmenter(bundle, runtime=runtime, cache_dir=None) as segmenter:
                crowd = _Crowd(segmenter, threads)
                rounds = [crowd.predict(count // 5 // threads) for _ in range(5)]
            growth = rounds[-1] / rounds[0] - 1
            found[runtime] = {
                "predictions": count // 5 // threads * threads * 5,
                "threads": threads,
                "different": len(crowd.wrong),
                "resident MB after each fifth": [round(size / 1e6, 1) for size in rounds],
                "growth %": round(100 * growth, 2),
            }
            failures += crowd.wrong + ([growth] if growth > GROWTH else [])
    return {"runtimes": found, "failures": failures}


class _Crowd:
    """Threads that share one Segmenter, and compare what they get with what one thread got."""

    prompts = ("red", "green", "blue")

    def __init__(self, segmenter: Any, threads: int) -> None:
        from tests.cris_edge.tiny_bundle import picture

        self.image = picture("red", "blue")
        self.segmenter, self.threads = segmenter, threads
        self.expected = {prompt: segmenter(self.image, prompt).mask for prompt in self.prompts}
        self.wrong: list[object] = []

    def predict(self, each: int) -> int:
        """Let every thread make `each` predictions; return the resident memory afterwards."""
        workers = [threading.Thread(target=self._work, args=(number, each)) for number in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return resident()

    def _work(self, number: int, each: int) -> None:
        try:
            for turn in range(each):
                prompt = self.prompts[(number + turn) % len(self.prompts)]
                if not np.array_equal(self.segmenter(self.image, prompt).mask, self.expected[prompt]):
                    self.wrong.append(prompt)
        except Exception as error:
            self.wrong.append(error)


# --- kills ------------------------------------------------------------------------------------------------------------

_JOBS = {
    "writing a bundle": (
        "import json, shutil, sys\nfrom pathlib import Path\nfrom cris_edge.bundle import BundleWriter\n"
        "tiny, target = Path(sys.argv[1]), Path(sys.argv[2]) / 'model'\nprint('ready', flush=True)\n"
        "with BundleWriter(target, overwrite=True) as writer:\n"
        "    shutil.copytree(tiny, writer.path, dirs_exist_ok=True)\n"
        "    writer.manifest = json.loads((tiny / 'manifest.json').read_bytes())\n"
    ),
    "writing the cache": (
        "import sys\nfrom cris_edge import Segmenter\nfrom cris_edge.backends import ov\nov.load()\n"
        "print('ready', flush=True)\n"
        "Segmenter(sys.argv[1], runtime='openvino', cache_dir=sys.argv[2] + '/cache')\n"
    ),
    "predicting a folder": (
        "import sys\nfrom cris_edge.cli import main\nprint('ready', flush=True)\n"
        "main(['predict', sys.argv[2] + '/images', 'red', '--model', sys.argv[1], '--output', sys.argv[2] + '/out',"
        " '--resume'])\n"
    ),
}


def run_kills(count: int, seed: int) -> dict[str, Any]:
    """Kill each job at random moments; then what is there must be whole, and the next run must complete."""
    from tests.cris_edge.tiny_bundle import build

    draw = random.Random(seed)
    table: dict[str, Any] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = build(Path(folder) / "tiny")
        for job, code in _JOBS.items():
            reference = _fresh(Path(folder) / "reference")
            took = _run_job(code, tiny, reference, None)
            expected = _content(job, tiny, reference)
            killed = 0
            scratch = _fresh(Path(folder) / "scratch")
            for number in range(count):
                killed += _run_job(code, tiny, scratch, draw.uniform(0, 1.1 * took)) < 0
                try:
                    _require_whole(job, scratch)
                    if number % 5 == 4 or number == count - 1:
                        _run_job(code, tiny, scratch, None)
                        if _content(job, tiny, scratch) != expected:
                            failures.append(f"{job} {number}: another result")
                        scratch = _fresh(scratch)
                except Exception as error:
                    failures.append(f"{job} {number}: {type(error).__name__}: {error}")
            table[job] = {"runs": count, "killed": killed}
    for failure in failures:
        print(failure, file=sys.stderr)
    return {"jobs": table, "broken": len(failures), "failures": failures}


def _fresh(folder: Path) -> Path:
    import cv2

    from tests.cris_edge.tiny_bundle import picture

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for number in range(12):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture("red", "blue", 40 + number, 60)[:, :, ::-1])
    return folder


def _run_job(code: str, tiny: Path, folder: Path, seconds: float | None) -> float:
    """Run a job to its end and return its seconds after it was ready, or kill it after some; -1 if that was in time."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "home")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny), str(folder)], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    try:
        process.wait(seconds if seconds is not None else 120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return -1.0
    finally:
        process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"the job ended with status {process.returncode}")
    return time.monotonic() - started


def _require_whole(job: str, folder: Path) -> None:
    from cris_edge.bundle import Bundle

    if job == "writing a bundle" and (folder / "model").exists():
        Bundle.open(folder / "model", thorough=True, cache_dir=None)
    if job == "predicting a folder" and (folder / "out").is_dir():
        import cv2

        for path in (folder / "out").rglob("*"):
            if not path.name.startswith(".") and path.suffix == ".png" and cv2.imread(str(path)) is None:
                raise ValueError(f"{path.name} is damaged")


def _content(job: str, tiny: Path, folder: Path) -> object:
    """Return what a finished job leaves, without times."""
    from cris_edge import Segmenter
    from cris_edge.bundle import Bundle
    from tests.cris_edge.tiny_bundle import picture

    if job == "writing a bundle":
        return Bundle.open(folder / "model", thorough=True, cache_dir=None).digest
    if job == "writing the cache":
        with Segmenter(tiny, runtime="openvino", cache_dir=folder / "cache") as segmenter:
            return segmenter(picture("red", "blue"), "red").rle()
    rows = [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]
    return sorted((Path(str(row.get("source", row.get("image")))).name, json.dumps(row.get("mask"))) for row in rows)


# --- peers ------------------------------------------------------------------------------------------------------------


def run_peers(count: int) -> dict[str, Any]:
    """Compare our RLE with pycocotools' on random masks, in both directions."""
    from pycocotools import mask as peer

    from cris_edge.image.coco import decode_rle, encode_rle

    generator = np.random.default_rng(0)
    different = []
    warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools, in NumPy 2
    for number in range(count):
        size = generator.integers(1, 80, 2)
        mask = generator.random(size) > generator.random()
        if number % 2:  # of larger parts
            mask = np.repeat(np.repeat(mask, 5, 0), 7, 1)
        ours, theirs = encode_rle(mask), peer.encode(np.asfortranarray(mask, np.uint8))
        same = ours["counts"] == theirs["counts"].decode() and (peer.decode(ours) == mask).all()
        back = decode_rle({"size": theirs["size"], "counts": theirs["counts"]})
        if not same or not np.array_equal(back, mask) or peer.area(ours) != mask.sum():
            different.append(number)
    return {"masks": count, "different": len(different), "failures": different}


if __name__ == "__main__":
    sys.exit(main())
