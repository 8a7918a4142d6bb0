"""``cris-edge serve``: the HTTP service and its page."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

import click

from cris_edge.cli.program import segmenter_options
from cris_edge.errors import OptionError

_MEGABYTE = 1 << 20


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on.")
@segmenter_options
@click.option(
    "--hint",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="One request at a time on all cores, or several at once.",
)
@click.option("--token", envvar="CRIS_EDGE_TOKEN", help="Required of requests, as Authorization: Bearer TOKEN.")
@click.option("--origin", "origins", multiple=True, help="Web origin that may call the service (CORS).")
@click.option("--allow-host", "hosts", multiple=True, help="Name of this machine in requests, or *.")
@click.option("--open-network", is_flag=True, help="Allow an address other than loopback without a token.")
@click.option("--max-megabytes", type=click.IntRange(min=1), default=20, show_default=True, help="Of a request.")
@click.option("--max-megapixels", type=click.IntRange(min=1), default=50, show_default=True, help="Of an image.")
@click.option("--max-prompts", type=click.IntRange(min=1), default=16, show_default=True, help="Of a request.")
@click.option("--max-queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that wait.")
@click.option(
    "--cache-megabytes",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="For kept images.",
)
@click.option(
    "--cache-seconds",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="For unused images.",
)
def serve(
    host: str,
    port: int,
    model: str | None,
    token: str | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    open_network: bool,
    max_megabytes: int,
    max_megapixels: int,
    max_prompts: int,
    max_queue: int,
    cache_megabytes: int,
    cache_seconds: int,
    **options: Any,
) -> None:
    """Serve a page and an HTTP API that segment images by prompts, on this device.

    The page is at /, the API's description at /docs.
    """
    from cris_edge.segmenter import Segmenter
    from cris_edge.serve.app import LOOPBACK, Service
    from cris_edge.serve.limits import Limits
    from cris_edge.serve.server import serve as run

    token = token or None  # an empty environment variable is no token
    local = _is_loopback(host)
    if not local and token is None and not open_network:
        raise OptionError(
            f"{host} can be reached by others; give --token, or --open-network behind a proxy that checks requests."
        )
    limits = Limits(
        body_bytes=max_megabytes * _MEGABYTE,
        pixels=max_megapixels * 1_000_000,
        prompts=max_prompts,
        queue=max_queue,
        cache_bytes=cache_megabytes * _MEGABYTE,
        cache_seconds=float(cache_seconds),
    )
    _log_requests()
    names = [*hosts, host, *LOOPBACK] if local or hosts else ["*"]
    service = Service(Segmenter(model, **options), limits, token=token, origins=origins, hosts=names)
    run(service.app(), host, port, lambda url: click.echo(url, err=True))


def _log_requests() -> None:
    """One JSON object for each request, a line of its own on stderr."""
    requests = logging.getLogger("cris_edge.serve")
    requests.setLevel(logging.INFO)
    requests.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    requests.addHandler(handler)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
