#!/usr/bin/env bash
# Install the browser, the Node and the curl that the tests with real clients need, where they are missing. On Debian.
set -euo pipefail

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)

missing=()
command -v chromium > /dev/null || missing+=(chromium)
command -v node > /dev/null || missing+=(nodejs)
command -v npm > /dev/null || missing+=(npm)
command -v curl > /dev/null || missing+=(curl)
compgen -G "/usr/share/fonts/*/inter/*" > /dev/null || missing+=(fonts-inter) # for the screenshot
if [ ${#missing[@]} -gt 0 ]; then
  "${as_root[@]}" apt-get -qq update
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq install -y --no-install-recommends "${missing[@]}"
fi

# Debian 12 has Node 18, which is too old for some of the packages. npm has newer ones.
new_enough='const [major, minor] = process.versions.node.split("."); process.exit(major * 100 + +minor >= 2019 ? 0 : 1)'
node -e "$new_enough" || "${as_root[@]}" npm install --global --no-audit --no-fund --ignore-scripts=false node@22

cd "$(dirname "$0")"
npm ci --no-audit --no-fund
npm ci --no-audit --no-fund --prefix ../../examples/offline

cd ../../examples/assistant
python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
