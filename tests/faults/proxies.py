"""nginx and Caddy in front of the service, set up as their manuals say."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from tests.faults.postgres import free_port

# WebSockets as nginx's manual has them, with connections to the service that are used again.
NGINX = """
worker_processes 1;
daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}
    upstream service {{
        server {service};
        keepalive 4;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""

CADDY = """
{{
    admin off
    auto_https off
}}
:{port} {{
    bind 127.0.0.1
    reverse_proxy {service}
}}
"""

COMMANDS = {
    "nginx": (NGINX, ["-e", "stderr", "-p", "{folder}", "-c", "{folder}/configuration"]),
    "caddy": (CADDY, ["run", "--adapter", "caddyfile", "--config", "{folder}/configuration"]),
}


class Proxy:
    """An `nginx` or a `caddy`, on a free port of 127.0.0.1, with all that it writes in a temporary folder."""

    def __init__(self, name: str, service: str) -> None:
        self._name = name
        self._service = service.removeprefix("http://")

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="tasks-faults-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        configuration, options = COMMANDS[self._name]
        text = configuration.format(folder=self._folder, service=self._service, port=port)
        (self._folder / "configuration").write_text(text)
        program = shutil.which(self._name) or f"/usr/sbin/{self._name}"  # which is not on everybody's path
        homes = {"HOME": str(self._folder), "XDG_DATA_HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, *(option.format(folder=self._folder) for option in options)],
                env=homes,
                stderr=log,
                stdout=log,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            shutil.rmtree(self._folder)

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx2.get(f"{self.url}/health").raise_for_status()
            except httpx2.HTTPError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)
            else:
                return
