# The service alone. Its database is elsewhere: DATABASE_URL names it.
# The tag names no patch of Python: an image that is built anew gets the newest.
FROM python:3.13-slim-trixie AS packages

COPY requirements.txt constraints.txt ./
# requirements.txt down to the line that ends what production needs; no pip, which is not needed either.
RUN sed '/^# All below is for development/,$d' requirements.txt > production.txt \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir -r production.txt


FROM python:3.13-slim-trixie

COPY --from=packages /venv /venv
WORKDIR /app
COPY *.py .env alembic.ini ./
COPY routes routes
COPY migrations migrations

# The second is for sslrootcert=system: the OpenSSL in psycopg2-binary looks where it was built, not in /etc.
ENV PATH=/venv/bin:$PATH \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

# Nobody, as numbers: from these Kubernetes can tell that it is not root.
USER 65534:65534
EXPOSE 8000

# Whether the process answers; it asks no database. With http.client, which no HTTP_PROXY leads astray.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8000, timeout=9); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]

# The command of the README, as a list, so that signals reach uvicorn and no shell. Without --workers:
# one process for each container, and as many containers as you like. WEB_CONCURRENCY sets another number.
CMD ["uvicorn", "main:app", "--http", "protocol:LimitedHttp", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "30", "--timeout-keep-alive", "75", "--no-access-log"]
