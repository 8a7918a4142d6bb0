"""``python -m benchmarks.serving``: the service under load, against the SDK in one process, on this device.

The client is wrk (https://github.com/wg/wrk), in a process of its own, over loopback. Its processor time is not
counted: a request costs what the server's process spent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time, sleep
from typing import IO, Any
from urllib.request import Request, urlopen

import click

from benchmarks import harness
from benchmarks.provenance import bundle_record
from cris_edge.benchmark.results import device, load_average, table
from cris_edge.bundle import default_model
from cris_edge.errors import OptionError, RuntimeFailure

PROMPTS = ("the bowl on the right",)
CLIENTS = (1, 8, 64)
_TICKS = os.sysconf("SC_CLK_TCK")
_MEGABYTE = 1 << 20

# Sends one fixed request; writes the counts of each status and the quantiles of the latency as JSON at the end.
_LUA = """
local file = io.open(os.getenv("SERVING_BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = os.getenv("SERVING_TYPE")
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() accepted, refused, failed = 0, 0, 0 end
function response(status)
  if status == 200 then accepted = accepted + 1 elseif status == 429 then refused = refused + 1
  else failed = failed + 1 end
end
function done(summary, latency)
  local accepted, refused, failed = 0, 0, 0
  for _, thread in ipairs(threads) do
    accepted, refused = accepted + thread:get("accepted"), refused + thread:get("refused")
    failed = failed + thread:get("failed")
  end
  local errors = summary.errors
  io.write(string.format('RESULT {"accepted": %d, "refused": %d, "failed": %d, "lost": %d, "seconds": %f, ' ..
    '"p50": %f, "p99": %f}\\n', accepted, refused, failed,
    errors.connect + errors.read + errors.write + errors.timeout, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
"""


@dataclass(frozen=True)
class Load:
    """What one load measured.

    Attributes:
        kind: "whole" for an image and a prompt in each request, "kept" for prompts about an image that is kept.
        clients: Connections at the same time.
        accepted: Requests answered with 200.
        refused: Requests answered with 429, the queue being full.
        failed: Requests answered otherwise.
        lost: Requests without an answer.
        seconds: That the load lasted.
        p50: Median latency, in seconds.
        p99: 99th percentile of the latency, in seconds.
        core_seconds: Processor time of the server for an accepted request.
        memory: Resident memory of the server at the end, in bytes.
        growth: Resident memory at the end over that after a tenth of the load.
    """

    kind: str
    clients: int
    accepted: int
    refused: int
    failed: int
    lost: int
    seconds: float
    p50: float
    p99: float
    core_seconds: float
    memory: int
    growth: float


def in_process(model: str | None, runtime: str, threads: int | None, image: Path, seconds: float) -> dict[str, float]:
    """Core-seconds of the SDK alone for each kind of request, in this process."""
    from cris_edge import Segmenter
    from cris_edge.serve.replies import reply

    data = image.read_bytes()
    with Segmenter(model, runtime=runtime, threads=threads) as segmenter:
        kept = segmenter.encode_image(data)
        found = {}
        for kind in ("whole", "kept"):
            count, began = 0, 0.0
            for repeat in range(2):  # the first fills caches and does not count
                count, began = 0, process_time()
                while process_time() - began < (seconds if repeat else 0.5):
                    scene = segmenter.encode_image(data) if kind == "whole" else kept
                    json.dumps(reply(segmenter(scene, PROMPTS[0]), "rle"))
                    count += 1
            found[kind] = (process_time() - began) / count
    return found


@contextmanager
def server(model: str | None, runtime: str, threads: int | None, queue: int) -> Iterator[tuple[int, str]]:
    """A running service: its process id and its address."""
    command = [
        sys.executable,
        "-m",
        "cris_edge",
        "serve",
        "--port",
        "0",
        "--runtime",
        runtime,
        "--max-queue",
        str(queue),
    ]
    command += ["--model", model] if model else []
    command += ["--threads", str(threads)] if threads else []
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads would stop the service
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield process.pid, _address(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _address(process: subprocess.Popen[str], log: IO[str]) -> str:
    """The URL that the service prints once it accepts connections."""
    while process.poll() is None:
        log.seek(0)
        if found := re.search(r"^http://\S+$", log.read(), re.MULTILINE):
            return found[0]
        sleep(0.05)
    log.seek(0)
    raise RuntimeFailure(f"The service did not start: {log.read()[-300:]}")


def processor_time(pid: int) -> float:
    """Seconds of user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(pid: int, url: str, kind: str, clients: int, seconds: float, image: Path, folder: Path) -> Load:
    """Put a load on a service, and measure it."""
    body, content_type = (
        _form(image) if kind == "whole" else (json.dumps({"prompts": [PROMPTS[0]]}).encode(), "application/json")
    )
    path = "/v1/segment"
    if kind == "kept":
        upload, upload_type = _form(image)
        with urlopen(Request(f"{url}/v1/images", upload, {"Content-Type": upload_type})) as answer:
            path = f"/v1/images/{json.load(answer)['id']}/segment"
    (folder / "body").write_bytes(body)
    (folder / "load.lua").write_text(_LUA)
    environment = {**os.environ, "SERVING_BODY": str(folder / "body"), "SERVING_TYPE": content_type}
    workers = min(clients, 2)
    command = ["wrk", "-t", str(workers), "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--timeout", "60s"]
    command += ["-s", str(folder / "load.lua"), url + path]
    before = processor_time(pid)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as client:
        sleep(seconds / 10)
        early = resident(pid)
        printed, _ = client.communicate(timeout=seconds + 120)
    spent, memory = processor_time(pid) - before, resident(pid)
    found = re.search(r"RESULT (.+)", printed)
    if found is None:
        raise RuntimeFailure(f"wrk printed no result: {printed[-300:]}")
    counts = json.loads(found[1])
    # A refused request costs the server too; it is counted with the accepted ones.
    return Load(
        kind, clients, **counts, core_seconds=spent / max(1, counts["accepted"]), memory=memory, growth=memory / early
    )


def _form(image: Path) -> tuple[bytes, str]:
    """A multipart body with an image and a prompt, and its content type."""
    boundary = "serving-benchmark"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{PROMPTS[0]}\r\n'
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    return (
        head.encode() + image.read_bytes() + f"\r\n--{boundary}--\r\n".encode(),
        f"multipart/form-data; boundary={boundary}",
    )


def measure(
    model: str | None, runtime: str, threads: int | None, image: Path, seconds: float, overload: float
) -> dict[str, Any]:
    """All loads, and the SDK alone before and after them."""
    if shutil.which("wrk") is None:
        raise OptionError("wrk is not installed; install it (Debian: apt-get install wrk).")
    before = load_average()
    alone = [in_process(model, runtime, threads, image, min(seconds, 10))]
    rows: list[Load] = []
    with tempfile.TemporaryDirectory() as folder, server(model, runtime, threads, max(CLIENTS)) as (pid, url):
        for kind in ("whole", "kept"):
            for clients in CLIENTS:
                harness.progress(f"{kind}, {clients} clients")
                rows.append(load(pid, url, kind, clients, seconds, image, Path(folder)))
    alone.append(in_process(model, runtime, threads, image, min(seconds, 10)))
    crowded = None
    if overload:
        with tempfile.TemporaryDirectory() as folder, server(model, runtime, threads, 16) as (pid, url):
            harness.progress(f"overload, {overload:.0f} seconds")
            crowded = load(pid, url, "whole", max(CLIENTS), overload, image, Path(folder))
    sdk = {kind: min(one[kind] for one in alone) for kind in ("whole", "kept")}
    return {
        "machine": device(),
        "load_before": before,
        "model": model or "default",
        "bundles": [bundle_record(Path(model) if model else default_model())],
        "runtime": runtime,
        "client": subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split(" Copyright")[
            0
        ],
        "image": f"{image.name}, {image.stat().st_size} bytes",
        "sdk_core_seconds": sdk,
        "sdk_core_seconds_runs": alone,
        "loads": [asdict(row) for row in rows],
        "overload": asdict(crowded) if crowded else None,
    }


def to_text(found: dict[str, Any], markdown: bool) -> str:
    """Tables of what was measured."""
    names = ("request", "clients", "per second", "p50, ms", "p99, ms", "core-ms", "SDK's", "ratio", "refused", "lost")
    rows = []
    loads = [*found["loads"], *([found["overload"]] if found["overload"] else [])]
    for row in loads:
        sdk = found["sdk_core_seconds"][row["kind"]]
        rows.append(
            [
                row["kind"] + (", overload" if row is found["overload"] else ""),
                str(row["clients"]),
                f"{row['accepted'] / row['seconds']:.0f}",
                f"{1e3 * row['p50']:.1f}",
                f"{1e3 * row['p99']:.1f}",
                f"{1e3 * row['core_seconds']:.2f}",
                f"{1e3 * sdk:.2f}",
                f"{row['core_seconds'] / sdk:.2f}",
                str(row["refused"]),
                str(row["lost"] + row["failed"]),
            ]
        )
    last = loads[-1]
    note = f"resident memory {last['memory'] / _MEGABYTE:.0f} MB, grown {last['growth']:.3f} times during the last load"
    return "\n\n".join(
        (f"{found['machine']['processor']}, {found['client']}", table(names, rows, markdown=markdown), note)
    )


@click.command()
@click.option("--model", metavar="DIR", help="Bundle.  [default: the default model]")
@click.option("--runtime", default="onnxruntime", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of the runtime.  [default: its own choice]")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=Path("examples/cat.jpg"))
@click.option("--seconds", default=20.0, show_default=True, help="Of each load.")
@click.option("--overload", default=0.0, show_default=True, help="Seconds of 64 clients on a queue of 16; 0 for none.")
@harness.written
def main(
    model: str | None,
    runtime: str,
    threads: int | None,
    image: Path,
    seconds: float,
    overload: float,
    output: Path | None,
    markdown: bool,
) -> None:
    """Measure the service under load."""
    harness.conclude(
        lambda: measure(model, runtime, threads, image, seconds, overload),
        to_text,
        output=output,
        markdown=markdown,
    )


if __name__ == "__main__":
    main()
