# One image: the gateway (`serve`, the default), its keys (`keys`) and the simulated tiers (`sim`).
#   docker build -t tiergate:0.1.0 .
#   docker run --rm --read-only --network host -e GATEWAY_HOST=127.0.0.1 tiergate:0.1.0
# The address inside is 0.0.0.0: without an API key and an admin key, there or in the store, `serve` refuses to start
# (docker-compose.yml makes them first).
# The two images it begins with are pinned by tag; with digests (docker-compose.yml says how) a build is the same twice.

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.13-slim AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/tiergate
WORKDIR /src
COPY requirements.lock ./
RUN uv venv "$VIRTUAL_ENV" && uv pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY backends backends
COPY gateway gateway
RUN uv pip install --no-deps .

FROM python:3.13-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tiergate" \
      org.opencontainers.image.description="One OpenAI-compatible endpoint in front of a fast and a strong model." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /opt/tiergate /opt/tiergate
ENV PATH=/opt/tiergate/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8080
USER 65532:65532
EXPOSE 8080
# http.client, not urllib: a proxy in the environment must not be asked for a loopback address. The certificate is no loopback address's, either.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import http.client as h, os, ssl, sys; e = os.environ; at = '127.0.0.1', int(e['GATEWAY_PORT']); \
name = e.get('GATEWAY_HOSTS', '').partition(',')[0].strip() or 'localhost'; \
tls = {'context': ssl._create_unverified_context()} if e.get('GATEWAY_TLS_CERT') else {}; \
c = (h.HTTPSConnection if tls else h.HTTPConnection)(*at, timeout=2, **tls); \
c.request('GET', '/health', headers={'Host': name}); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tiergate"]
CMD ["serve"]
