# The job status service and `retort jobs`: no torch, nothing to write to, no root.
#   docker build -f docker/service.Dockerfile -t retort-service .
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
COPY requirements/service.txt /tmp/service.txt
RUN python -m venv /opt/retort \
 && /opt/retort/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/service.txt

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/retort /opt/retort
COPY cli.py /app/cli.py
COPY service /app/service
COPY teacher_cache/__init__.py teacher_cache/errors.py teacher_cache/local_path.py /app/teacher_cache/
RUN python -m compileall -q /app
ENV PATH=/opt/retort/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["python", "/app/cli.py"]
# not the loopback address, so serve refuses to start without a token of 32 bytes or more
# (RETORT_TOKEN_FILE); further names that it is asked by: RETORT_ALLOW_HOSTS
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
