"""Holds the running service against its openapi.json with Schemathesis: make fuzz.

The service and its PostgreSQL are started for this alone, so that it can do no harm. Arguments: the
number of examples for each operation, and seeds; without a seed a new one is made up and printed.
"""

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import embedded
from tests.servers import HERE, service

# The last on its own: behind the others it ends early without saying so.
PHASES = ("examples,coverage,fuzzing", "stateful")


def main(examples: str, *seeds: str) -> int:
    """Return 0 when no check has failed."""
    schemathesis = Path(sys.executable).with_name("st")
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        Path(folder).chmod(0o755)  # as root the server is another account
        url = embedded.start(Path(folder) / "postgres")
        with service("--no-access-log", DATABASE_URL=url) as started:
            failed = 0
            for seed in seeds or [str(secrets.randbelow(2**32))]:
                print(f"Seed {seed}: to repeat this, make fuzz EXAMPLES={examples} SEEDS={seed}", flush=True)
                for phases in PHASES:
                    options = ["--phases", phases, "--max-examples", examples, "--seed", seed]
                    command = [schemathesis, "run", f"{started.url}/openapi.json", *options]
                    failed |= subprocess.run(command, cwd=HERE, check=False).returncode
        embedded.stop(Path(folder) / "postgres")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
