# One image for every role: `serve` (default), `sell`, `settle`, `process`. See config/compose.yaml.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# Dependencies first: this layer changes only with the locks.
COPY config/locks/gateway.txt config/locks/build.txt config/locks/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r config/locks/build.txt
RUN python -m venv /opt/farebox && /opt/farebox/bin/pip install --no-compile --require-hashes -r config/locks/gateway.txt

COPY pyproject.toml README.md LICENSE ./
COPY contracts contracts
COPY registry registry
COPY buyer buyer
COPY seller seller
COPY gateway gateway
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
    && /opt/farebox/bin/pip install --no-compile --no-deps --no-index /dist/*.whl
# The container's user may not write bytecode beside the sources, so it is made here.
RUN /opt/farebox/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/farebox

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="farebox" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/farebox /opt/farebox
# Numbers, not names, so that an orchestrator can see that it is not root.
RUN useradd --system --uid 10001 --user-group --no-create-home farebox \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/farebox
ENV PATH=/opt/farebox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FAREBOX_HOME=/var/lib/farebox \
    FAREBOX_HEALTH_URL=http://127.0.0.1:9403/healthz
USER 10001:10001
WORKDIR /var/lib/farebox
VOLUME /var/lib/farebox
EXPOSE 8402 8403
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['FAREBOX_HEALTH_URL'], timeout=2)"]
ENTRYPOINT ["farebox"]
CMD ["serve"]
