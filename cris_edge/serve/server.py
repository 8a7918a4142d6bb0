"""uvicorn around the application."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from cris_edge.errors import InputError, RuntimeMissingError

_BACKLOG = 512  # connections that wait to be accepted
_DRAIN = 30  # seconds that requests which run are given at shutdown


def serve(app: Callable[..., Any], host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes (SIGINT or SIGTERM); requests that were accepted are answered first.

    Args:
        app: The ASGI application.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        announce: Called with the URL once connections are accepted.

    Raises:
        RuntimeMissingError: uvicorn is not installed.
        InputError: The address cannot be bound.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(
            'The service needs uvicorn; install it with pip install "cris-edge[serve]".'
        ) from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            name = f"[{host}]" if ":" in host else host
            announce(f"http://{name}:{listening.getsockname()[1]}")

    # The application logs each request itself.
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_config=None, timeout_graceful_shutdown=_DRAIN
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio sends answers at once (TCP_NODELAY); otherwise each waits 40 ms for an ACK.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error.strerror or error}.") from error
    Server(config).run(sockets=[listening])
