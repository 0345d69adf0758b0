# One replica of the service. It needs MONGODB_URI (a replica set) and HOLDFAST_SECRET_KEYS (the same for every replica),
# and refuses to serve beyond loopback until a first key exists: docker run … holdfast keys create --tenant T --right read …
FROM python:3.13-slim AS build
RUN python -m venv /opt/holdfast
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements-image.lock requirements-embedder.lock /src/
RUN /opt/holdfast/bin/pip install --require-hashes --requirement /src/requirements-image.lock \
  && /opt/holdfast/bin/pip install --require-hashes --no-deps --requirement /src/requirements-embedder.lock
COPY . /src
RUN /opt/holdfast/bin/pip install --no-deps /src
# The migrations lie beside the packages, as they do in a checkout.
RUN cp -r /src/scripts "$(/opt/holdfast/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 HOLDFAST_DATA=/data HOLDFAST_HOST=0.0.0.0 HOLDFAST_PORT=8700
USER holdfast
WORKDIR /data
VOLUME /data
EXPOSE 8700
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s --retries=3 CMD ["python", "-c", \
  "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HOLDFAST_PORT\"]}/health/ready', timeout=5)"]
ENTRYPOINT ["holdfast"]
CMD ["serve"]
