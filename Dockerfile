# The service without a database: DATABASE_URL is required.
# The tag has no patch version, so a new build gets Python's latest security fixes.
FROM python:3.13-slim-trixie AS packages

COPY requirements.lock ./
# pip accepts only files with a hash of the lock, and only wheels, so that no package runs code here. No pip in the image.
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock


FROM python:3.13-slim-trixie

COPY --from=packages /venv /venv
WORKDIR /app
COPY *.py .env alembic.ini ./
COPY routes routes
COPY migrations migrations

# SSL_CERT_FILE makes sslrootcert=system work: the OpenSSL in psycopg2-binary does not look in /etc/ssl by itself.
# UVICORN_* are the options of the command in README. As variables, they also apply to a command of your own.
ENV PATH=/venv/bin:$PATH \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PORT=8000 \
    UVICORN_HTTP=protocol:LimitedHttp \
    UVICORN_HOST=0.0.0.0 \
    UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=30 \
    UVICORN_TIMEOUT_KEEP_ALIVE=75 \
    UVICORN_ACCESS_LOG=false

# The user nobody, by number, because Kubernetes' runAsNonRoot cannot check a name.
USER 65534:65534
EXPOSE 8000

# /health does not query the database. http.client is used because it ignores HTTP_PROXY.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "from http.client import HTTPConnection; from os import environ; c = HTTPConnection('127.0.0.1:' + environ['PORT'], timeout=9); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]

# Platforms set PORT, and only a shell can put it into the command. exec replaces the shell, so that signals reach uvicorn.
# One process for each container.
CMD ["sh", "-c", "exec uvicorn main:app --port $PORT"]
