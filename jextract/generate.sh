#!/usr/bin/env bash
# Regenerates generated/ from the headers. Usage: generate.sh <folder with llama.h and ggml.h>
# Needs jextract for JDK 25 on the PATH, or its path in JEXTRACT. It is in no registry: OpenJDK has early-access builds,
# and bin/build-jextract builds it from a checkout of openjdk/jextract.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
headers=${1:?usage: generate.sh <folder with llama.h and ggml.h>}
jextract=${JEXTRACT:-jextract}
command -v "$jextract" >/dev/null || { echo "jextract not found: install it, or set JEXTRACT to its path" >&2; exit 1; }
resource=$("${CC:-cc}" -print-file-name=include) # stddef.h and its like
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate() { # name of the include list, header
    # shellcheck disable=SC2046 # the list is meant to be split into words
    "$jextract" --output "$fresh" --target-package dev.kvmerge.bindings -I "$headers" -I "$resource" \
        --header-class-name "$3" $(grep -v '^#' "$here/$1.includes") "$2"
}
generate llama "$headers/llama.h" Llama_h
generate kvmerge "$here/../native/include/kvmerge.h" Kvmerge_h
rm -rf "$here/generated"
mkdir -p "$here/generated"
cp -r "$fresh"/. "$here/generated/"
echo "wrote $(find "$here/generated" -name '*.java' | wc -l) files to jextract/generated"
