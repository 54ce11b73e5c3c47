# The service without a database: DATABASE_URL is required.
# The tag has no patch version, so a new build gets Python's latest security fixes.
FROM python:3.13-slim-trixie AS packages

COPY requirements.txt constraints.txt ./
# Only the part of requirements.txt above the development packages, and no pip in the image.
RUN sed '/^# All below is for development/,$d' requirements.txt > production.txt \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir -r production.txt


FROM python:3.13-slim-trixie

COPY --from=packages /venv /venv
WORKDIR /app
COPY *.py .env alembic.ini ./
COPY routes routes
COPY migrations migrations

# SSL_CERT_FILE makes sslrootcert=system work: the OpenSSL in psycopg2-binary does not look in /etc/ssl by itself.
ENV PATH=/venv/bin:$PATH \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

# The user nobody, by number, because Kubernetes' runAsNonRoot cannot check a name.
USER 65534:65534
EXPOSE 8000

# /health does not query the database. http.client is used because it ignores HTTP_PROXY.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8000, timeout=9); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]

# The command of the README. A list, so that signals reach uvicorn instead of a shell. Without --workers, one process
# for each container; WEB_CONCURRENCY sets another number.
CMD ["uvicorn", "main:app", "--http", "protocol:LimitedHttp", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "30", "--timeout-keep-alive", "75", "--no-access-log"]
