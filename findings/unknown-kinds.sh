#!/usr/bin/env bash
# kubernetes-validate of PyPI, which validates manifests against the schemas of Kubernetes, ends with 0 for a manifest whose
# kind or version has no schema, also with --strict: it prints a warning, and nothing with --no-warn. So a mistyped kind or
# version passes as valid, whatever the manifest contains. A mistyped key is an error. As a module it raises
# SchemaNotFoundError instead.
#
# Needs python3 with pip and the package index; installs into a temporary directory. Exits with 1 if the behaviour has
# changed.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -r "$directory"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$directory" \
    kubernetes-validate==1.37.0
export PYTHONPATH=$directory
changed=0

# check STATUS NAME API-VERSION KIND: a manifest with a key that is not a key of any kind.
check() {
    local wanted=$1 name=$2 status=0
    printf 'apiVersion: %s\nkind: %s\nmetadata: {name: x}\nnonsense: 1\n' "$3" "$4" >"$directory/x.yaml"
    python3 -m kubernetes_validate --strict --kubernetes-version 1.37 "$directory/x.yaml" | cut -c1-100 || true
    python3 -m kubernetes_validate --strict --no-warn --kubernetes-version 1.37 "$directory/x.yaml" >"$directory/quiet" || status=$?
    printf '%s: exit status %d, %d bytes with --no-warn\n\n' "$name" "$status" "$(wc -c <"$directory/quiet")"
    [[ $status == "$wanted" ]] || changed=1
}
python3 -m kubernetes_validate --version
check 1 "a key that is unknown" apps/v1 Deployment
check 0 "a kind that is unknown" apps/v1 Deploymentt
check 0 "a version that is unknown" apps/v2 Deployment

python3 - <<'PYTHON' || changed=1
import sys
from kubernetes_validate import SchemaNotFoundError, validate
try:
    validate({"apiVersion": "apps/v1", "kind": "Deploymentt", "metadata": {"name": "x"}}, "1.37", strict=True)
    sys.exit("as a module: valid")
except SchemaNotFoundError as error:
    print("as a module:", error.message)
PYTHON
((changed == 0)) || { echo "the behaviour has changed" >&2; exit 1; }
