"""The HTTP service and its page (extra ``serve``): ``cris-edge serve``.

Starlette, because the service is a handful of routes: FastAPI would add pydantic, a compiled dependency larger than the
SDK, for validation that the SDK does itself. uvicorn runs it; prometheus-client writes the metrics.
"""
