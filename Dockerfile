# The service, without torch, in two variants:
#     docker build -t fcos-detect:cpu .
#     docker build -t fcos-detect:gpu --build-arg VARIANT=gpu .
# BASE_IMAGE: any image of Debian's family with Python 3.11 to 3.14, venv and pip. CUDA's libraries come with the
# Python packages of the GPU variant, the driver from the host: no CUDA base image is needed.

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG VARIANT=cpu
WORKDIR /build
COPY requirements/serve.txt requirements/gpu.txt ./
# onnxruntime-gpu runs on the CPU too, but is ten times the size: the CPU variant takes the wheel without CUDA.
RUN case "$VARIANT" in \
        cpu) sed 's/^onnxruntime-gpu==/onnxruntime==/' serve.txt > chosen.txt ;; \
        gpu) cp gpu.txt chosen.txt ;; \
        *) echo "VARIANT is '$VARIANT', but must be cpu or gpu." >&2; exit 1 ;; \
    esac \
    && python3 -m venv --without-pip /venv \
    && python3 -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check -r chosen.txt \
    && find /venv -type d -name tests -path '*/numpy/*' -prune -exec rm -r {} +
# The extra `otel` traces if OTEL_EXPORTER_OTLP_ENDPOINT is set. After the rest: dev.txt changes most often.
COPY requirements/dev.txt ./
RUN python3 -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
    --constraint dev.txt opentelemetry-sdk opentelemetry-exporter-otlp-proto-http

# locust and the load test: docker build --target loadtest .
FROM ${BASE_IMAGE} AS loadtest
COPY requirements/load.txt /build/
RUN python3 -m venv --without-pip /venv \
    && python3 -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check -r /build/load.txt
COPY tests/load /load
USER 10001:10001
WORKDIR /results
ENTRYPOINT ["/venv/bin/locust", "--locustfile", "/load/locustfile.py"]

FROM ${BASE_IMAGE} AS runtime
# The root file system may be read-only: nothing is written but temporary files, and bytecode is there already.
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp FCOS_HOST=0.0.0.0 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /srv
# For labels on drawn pictures that are Latin, Greek or Cyrillic; fonts-noto-cjk, of 90 MB, would do for Chinese,
# Japanese and Korean ones.
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends fonts-dejavu-core >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /venv /venv
COPY model/weights model/weights
COPY app app
# A checkout made under a umask such as 077 has files that only their owner could read.
RUN find . ! -perm -a+r -exec chmod a+rX {} + && python3 -m compileall -q app
USER 10001:10001
EXPOSE 8000
# /readyz turns 200 once the model is warm, and 503 while the service ends.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; \
    r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.getenv('FCOS_PORT') or '8000'}/readyz\", timeout=2)"]
CMD ["python", "-m", "app"]
