"""What is loaded only when it is first asked for?   All that FastAPI serves: /admin, the page, /docs, /v1/route,
/v1/feedback.

FastAPI takes 8 MB and a quarter of a second to set up, which most processes never need.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig

from gateway import __version__
from gateway.admin import Guard, Recent, admin_routes
from gateway.admin_policy import Desk, policy_routes
from gateway.decisions import SHAPES, decision_routes
from gateway.doors import Doors
from gateway.errors import BadRequest
from gateway.http1 import Client
from gateway.openapi import described
from gateway.page import page_routes
from gateway.revisions import Revisions
from gateway.settings import Settings
from gateway.status import ERRORS, answered
from gateway.telemetry import Telemetry


def lazy_app(doors: Doors, settings: Settings, client: Client, revisions: Revisions, recent: Recent) -> FastAPI:
    """The FastAPI app. `client` reaches the model servers, `recent` gives the newest records of all workers."""
    plain: Any = {"openapi_url": None, "redirect_slashes": False, "telemetry": traced(doors.telemetry)}
    errors = ERRORS | {RequestValidationError: invalid}
    app = FastAPI(title="Tiergate", version=__version__, exception_handlers=errors, **plain)
    guard = Guard(doors.keys, settings.admin_key)
    # As they are: `include_router` works each route out once more.
    app.routes.extend(admin_routes(guard, doors.keys, lambda: doors.policy, recent).routes)
    app.routes.extend(policy_routes(guard, Desk(revisions, doors.comparison, doors.upstream.load, recent)).routes)
    app.routes.extend(page_routes(guard, client, lambda: doors.policy).routes)
    app.routes.extend(decision_routes(doors, settings).routes)
    described(app, SHAPES)
    return app


def traced(telemetry: Telemetry) -> TelemetryConfig:
    """FastAPI's own spans for what it serves: one each, without what was said."""
    tracers = telemetry.tracers
    told = TelemetryConfig(tracing=tracers is not None, metrics=False, logs=False, operation_spans=False)
    return told | TelemetryConfig(tracer_provider=tracers)


async def invalid(request: Request, error: Any) -> Response:
    first, kind = error.errors()[0], request.headers.get("content-type") or "none"
    if first["type"] == "model_attributes_type" and "json" not in kind:  # curl -d says that it is a form
        first = {"msg": f"Say that the body is JSON: content-type: application/json, not {kind[:64]}.", "loc": ()}
    return answered(BadRequest(str(first["msg"]), param=".".join(map(str, first["loc"][1:])) or None), 400)
