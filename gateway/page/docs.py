"""How does one read the API's description?   Swagger UI at /docs: two files from a CDN, each checked by its hash.

/docs has the same origin as /ui, which keeps the admin key: its Content-Security-Policy lets only these files run, and
connect to nobody else.
"""

import base64
import hashlib

from fastapi import APIRouter, Response

CDN = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/"
SCRIPT = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"  # swagger-ui-bundle.js, as on npm
STYLE = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"  # swagger-ui.css
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#description"})'
OWN = base64.b64encode(hashlib.sha256(START.encode()).digest()).decode()
PAGE = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Tiergate's API</title>
<link rel="stylesheet" href="{CDN}swagger-ui.css" integrity="{STYLE}" crossorigin="anonymous">
<div id="description"></div>
<script src="{CDN}swagger-ui-bundle.js" integrity="{SCRIPT}" crossorigin="anonymous"></script>
<script>{START}</script>
"""
# Swagger UI styles its elements in place, and draws its icons from data.
POLICY = (
    f"default-src 'none'; script-src {CDN}swagger-ui-bundle.js 'sha256-{OWN}'; style-src {CDN}swagger-ui.css "
    "'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def docs_route(routes: APIRouter) -> None:
    headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(PAGE, headers=headers, media_type="text/html")
