#!/usr/bin/env bash
# Export a checkpoint to a bundle for ONNX Runtime in fp32, and restore an image with it.
# Usage: export.sh [CHECKPOINT [OUT [OPTION ...]]]; options go to `dod-export build`.
set -euo pipefail

checkpoint=${1:-mini}
out=${2:-build/my-bundle}
samples=$(dirname "${BASH_SOURCE[0]}")/../../docs/samples

dod-export build --checkpoint "$checkpoint" --out "$out" --targets onnxruntime --precision fp32 "${@:3}"
dod-runtime info "$out"
dod-runtime restore "$samples/noise.png" "$out-noise.png" --bundle "$out"
