#!/usr/bin/env bash
# The service as it is deployed: model/ and service/ alone, in an environment without torchrec.
# Usage: serve_only.sh TRAINING_PYTHON SERVING_PYTHON. The first makes a tiny artifact, the second
# serves it and asks. Everything made lies in a temporary folder that is removed.
set -euo pipefail
training_python="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
serving_python="$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cd "$root"
"$training_python" -c "import sys, pathlib; from tests.artifacts import publish_artifact; publish_artifact(pathlib.Path(sys.argv[1]))" "$work/models"
mkdir "$work/app"
cp -R model service tests/serve_only_check.py "$work/app/"
cd "$work/app"
"$serving_python" serve_only_check.py --models "$work/models"
