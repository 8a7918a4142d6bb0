"""uvicorn around the application."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cris_edge.errors import InputError, RuntimeMissingError

if TYPE_CHECKING:
    from starlette.applications import Starlette

_DRAIN = 30  # seconds that requests which run are given at shutdown


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve until a signal comes (SIGINT or SIGTERM); requests that were accepted are answered first.

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
    # The application logs each request itself.
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_config=None, timeout_graceful_shutdown=_DRAIN
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(config)
    try:
        sockets = [config.bind_socket()]
    except SystemExit as error:  # uvicorn's way to say that the address is taken
        raise InputError(
            f"{host}:{port} cannot be listened on; it is in use or not an address of this machine."
        ) from error
    server.run(sockets=sockets)
