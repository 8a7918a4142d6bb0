"""The OpenAPI description of the service."""

from __future__ import annotations

from typing import Any

from cris_edge import __version__
from cris_edge.serve.limits import Limits
from cris_edge.serve.replies import FORMATS

_EXAMPLE = {
    "model": "default",
    "results": [
        {
            "prompt": "the bowl on the right",
            "empty": False,
            "score": 0.93,
            "box": [112.0, 80.0, 190.0, 171.0],
            "area": 5120,
            "size": [360, 480],
            "threshold": 0.35,
            "format": "rle",
            "mask": {"size": [360, 480], "counts": "..."},
            "timings": {"image_encoder": 0.004, "mask_decoder": 0.001},
        }
    ],
}


def document(limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The description, as JSON.

    Args:
        limits: What the service accepts; the description says so.
        secured: Whether requests need a token.
    """
    options = {
        "threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": "Of the probability of a pixel."},
        "min_presence": {"type": "number", "minimum": 0, "maximum": 1, "description": "Below it, nothing matches."},
        "format": {"type": "string", "enum": list(FORMATS), "default": "rle", "description": "Of the mask."},
    }
    prompts = {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": limits.prompts,
        "example": ["the white cat", "the bowl on the right"],
    }
    image = {"type": "string", "contentEncoding": "base64", "description": "An image file in base64."}
    file = {"type": "string", "contentMediaType": "application/octet-stream", "description": "An image file."}
    form_options = {**options, "prompt": {"type": "array", "items": {"type": "string"}, "description": "Repeated."}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CRIS Edge",
            "version": __version__,
            "description": "Segment anything you can describe.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        **({"security": [{"bearer": []}]} if secured else {}),
        "paths": {
            "/v1/segment": {
                "post": {
                    "summary": "Segment an image by one or several prompts",
                    "operationId": "segment",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "multipart/form-data": {
                                "schema": _object({"image": file, **form_options}, "image", "prompt"),
                                "encoding": {"prompt": {"style": "form", "explode": True}},
                            },
                            "application/json": {
                                "schema": _object({"image": image, "prompts": prompts, **options}, "image", "prompts")
                            },
                        },
                    },
                    "responses": {"200": _results(), **_problems("401", "413", "415", "422", "429", "503")},
                }
            },
            "/v1/images": {
                "post": {
                    "summary": "Keep an image, so that each further prompt costs only the decoder",
                    "operationId": "addImage",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "multipart/form-data": {"schema": _object({"image": file}, "image")},
                            "application/json": {"schema": _object({"image": image}, "image")},
                        },
                    },
                    "responses": {
                        "201": _response(
                            "The image is kept.",
                            {"id": "Vw3k0mS2c1Xh5eJ9", "width": 480, "height": 360, "expires_in": limits.cache_seconds},
                        ),
                        **_problems("401", "413", "415", "422", "429", "503"),
                    },
                }
            },
            "/v1/images/{id}": {
                "delete": {
                    "summary": "Forget an image",
                    "operationId": "removeImage",
                    "parameters": [_identifier()],
                    "responses": {"204": {"description": "It is gone."}, **_problems("401", "404")},
                }
            },
            "/v1/images/{id}/segment": {
                "post": {
                    "summary": "Segment a kept image",
                    "operationId": "segmentImage",
                    "parameters": [_identifier()],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": _object({"prompts": prompts, **options}, "prompts")}
                        },
                    },
                    "responses": {"200": _results(), **_problems("401", "404", "413", "422", "429", "503")},
                }
            },
            "/v1/models": {
                "get": {
                    "summary": "The model, and how it runs",
                    "operationId": "models",
                    "responses": {"200": _response("The models.", {"models": [{"name": "default"}]})},
                }
            },
            "/healthz": {
                "get": {
                    "summary": "Whether the process is alive",
                    "operationId": "healthy",
                    "security": [],
                    "responses": {"200": _response("It is.", {"status": "alive", "version": __version__})},
                }
            },
            "/readyz": {
                "get": {
                    "summary": "Whether a request would be accepted",
                    "operationId": "ready",
                    "security": [],
                    "responses": {"200": _response("It would.", {"status": "ready"}), **_problems("503")},
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Metrics in Prometheus' text format",
                    "operationId": "metrics",
                    "responses": {
                        "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
                    },
                }
            },
        },
        "components": {
            **({"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if secured else {}),
            "schemas": {
                "Problem": _object(
                    {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                    },
                    "title",
                    "status",
                    "detail",
                )
            },
        },
    }


_MEANINGS = {
    "401": "The token is missing or wrong.",
    "404": "There is no such image.",
    "413": "The request or the image is too large.",
    "415": "The body or the file is of an unknown kind.",
    "422": "The image or a field cannot be used.",
    "429": "The queue is full; try again.",
    "503": "The service is shutting down.",
}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _identifier() -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def _response(description: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"description": description, "content": content}


def _results() -> dict[str, Any]:
    return _response("One result for each prompt, in their order.", _EXAMPLE)


def _problems(*statuses: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}
