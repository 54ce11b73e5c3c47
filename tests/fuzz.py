"""Test the running service against its openapi.json with Schemathesis (`make fuzz`).

This starts a service and a PostgreSQL server of its own, so it does not change other data. The arguments are
the number of examples for each operation, and any number of seeds. The default is one random seed, which is printed.
"""

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import embedded
from tests.servers import HERE, service

# Stateful tests run separately: after the other phases, Schemathesis stops them early without a message.
PHASES = ("examples,coverage,fuzzing", "stateful")


def main(examples: str, *seeds: str) -> int:
    """Run Schemathesis once for each seed, and return 0 if no check has failed."""
    schemathesis = Path(sys.executable).with_name("st")
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        Path(folder).chmod(0o755)  # under root, PostgreSQL runs as another account
        url = embedded.start(Path(folder) / "postgres")
        with service("--no-access-log", DATABASE_URL=url) as running:
            exit_status = 0
            for seed in seeds or [str(secrets.randbelow(2**32))]:
                print(f"Seed {seed}: to repeat this, make fuzz EXAMPLES={examples} SEEDS={seed}", flush=True)
                for phases in PHASES:
                    options = ["--phases", phases, "--max-examples", examples, "--seed", seed]
                    command = [schemathesis, "run", f"{running.url}/openapi.json", *options]
                    exit_status |= subprocess.run(command, cwd=HERE, check=False).returncode
        embedded.stop(Path(folder) / "postgres")
    return exit_status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
