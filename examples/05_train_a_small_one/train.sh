#!/usr/bin/env bash
# Train a small model on a folder of clean photographs, from random weights to a checkpoint with prototypes.
# Usage: train.sh PHOTOGRAPHS [OUT [STEPS]]
set -euo pipefail

photographs=${1:?usage: train.sh PHOTOGRAPHS [OUT [STEPS]]}
out=${2:-build/small}
steps=${3:-200}

mkdir -p "$out"
cp "$(dirname "${BASH_SOURCE[0]}")/preset.yaml" "$out/preset.yaml"
common=(--checkpoint "$out" --photographs "$photographs" --crop 32)
for command in vae unet ddpm stage1 stage2; do
    dod-train "$command" "${common[@]}" --steps "$steps" --batch-size 4 --workers 0 --state "$out/state"
done
dod-train calibrate "${common[@]}" --num-samples "$steps"
