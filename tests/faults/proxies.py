"""nginx and Caddy as reverse proxies in front of the service, configured as in their manuals."""

import shutil

import httpx2

from tests.faults.processes import ServerProcess

# The WebSocket configuration of nginx's manual, with keep-alive connections to the service.
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


class Proxy(ServerProcess):
    """An `nginx` or a `caddy` in front of the service at the URL `service`."""

    def __init__(self, name: str, service: str) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self._name = name
        self._service = service.removeprefix("http://")

    def prepare(self) -> None:
        """Write the configuration."""
        configuration, _ = COMMANDS[self._name]
        text = configuration.format(folder=self.folder, service=self._service, port=self.port)
        (self.folder / "configuration").write_text(text)

    def start(self) -> None:
        """Start the proxy and wait until the service responds through it."""
        _, options = COMMANDS[self._name]
        program = shutil.which(self._name) or f"/usr/sbin/{self._name}"  # /usr/sbin is not on every PATH
        folder = str(self.folder)
        self.launch(
            [program, *(option.format(folder=folder) for option in options)],
            lambda: httpx2.get(f"{self.url}/health").raise_for_status(),
            httpx2.HTTPError,
            env={"HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder},
        )
