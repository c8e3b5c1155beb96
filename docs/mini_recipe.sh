#!/usr/bin/env bash
# Trains the shipped preset mini from nothing: every command in the order in which it was run. About eleven hours on two
# CPU cores, not counting the DDPM. The result goes into the copies build/presets/mini and build/presets/mini-105; the shipped
# weights stay as they are. Commands resume when they are given again. What each step was for: docs/experiments.md.
#
# A run is named by its --seed. The shipped weights saw three changes along the way that a new run need not repeat:
# - photographs: 31 until run 61, 65 until run 101, 142 until run 103, then all 247;
# - mfm.crops in the preset: 9 until run 51, 16 for runs 52 and 53, then 25; detail.dense: 3 until prune, then 2;
# - runs 52 to 62 used fp32, on a CPU without matrix units.
# Edit build/presets/mini/preset.yaml for the latter two (detail: {dense: 3} before the first command of stage 2, and
# {dense: 2} before prune).
set -euo pipefail

PHOTOGRAPHS=${PHOTOGRAPHS:-photographs}                 # gets train/ and held_out/
STATES=${STATES:-build}                                 # gets one folder for each interrupted run
IMAGES=(--photographs "$PHOTOGRAPHS/train")
BF16=(--precision bf16)                                 # faster on a CPU with matrix units (AMX); else fp32
FP32=(--precision fp32)

COMMON=("${IMAGES[@]}" --workers 0)
DDPM=("${COMMON[@]}" --batch-size 16 --crop 64)
# Stage 1 minimizes the error of the restored latent alone, so that no decoder is run.
ONE=("${COMMON[@]}" --rec-weight 0 --dmd-weight 0 --perceptual-weight 0 --latent-weight 1)
# Stage 2 trains the decoder with the detail modules, at two fifths of their learning rate.
TWO=("${COMMON[@]}" --decoder trained --plain-weight 0 --decoder-lr-multiplier 0.4)
RELATIVE=(--relative --rec-weight 0.15)                 # each image's error relative to itself
WHOLE=(--crop 512 --tile-size 256 384 512)              # c from windows of 512 px, tiles of three sizes restored
TILE=(--crop 512 --tile-size 192)
ANY=(--crop-candidates 1)                               # any crop, not the more detailed of two
SOFT=("${RELATIVE[@]}" --color-jitter 0.3 "${ANY[@]}" --clean-fraction 0.05 --named 0.3 --batch-size 3 "${TILE[@]}")

state() { echo --state "$STATES/training-$1"; }

dod-train photographs "$PHOTOGRAPHS"

# The frozen priors: DDPM, autoencoder, latent UNet.
dod-train ddpm "${DDPM[@]}" --steps 400
dod-train ddpm "${DDPM[@]}" --color-jitter 0.6 --continue $(state 7) --seed 7 --steps 600
dod-train ddpm "${DDPM[@]}" --color-jitter 0.3 --continue --degraded-fraction 0.85 $(state 21) --seed 21 --steps 1200 --learning-rate 4e-4
dod-train vae "${COMMON[@]}" "${BF16[@]}" --color-jitter 0.25 --seed 41 --steps 2200 --batch-size 8 --crop 96 --learning-rate 4e-4
dod-train unet "${COMMON[@]}" "${BF16[@]}" --color-jitter 0.3 --seed 41 --steps 1100 --batch-size 12 --crop 128 --learning-rate 5e-4

# The two stages in turn.
dod-train stage1 "${ONE[@]}" "${BF16[@]}" --color-jitter 0.15 --seed 42 --steps 1800 --batch-size 4 --crop 192 --learning-rate 8e-4
dod-train stage2 "${TWO[@]}" "${BF16[@]}" --color-jitter 0.15 --seed 43 --steps 1700 --batch-size 3 --crop 192 --learning-rate 1e-3
dod-train stage1 "${ONE[@]}" "${BF16[@]}" --continue --color-jitter 0.1 $(state 44) --seed 44 --steps 950 --batch-size 8 --crop 128 --learning-rate 5e-4
dod-train stage2 "${TWO[@]}" "${BF16[@]}" --color-jitter 0.1 $(state 44) --seed 45 --steps 1050 --batch-size 3 --crop 192 --learning-rate 6e-4
dod-train stage1 "${ONE[@]}" "${BF16[@]}" --continue --color-jitter 0.1 $(state 46) --seed 46 --steps 3500 --batch-size 4 --crop 192 --learning-rate 1e-3
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${RELATIVE[@]}" --color-jitter 0.1 $(state 46) --seed 47 --steps 3600 --batch-size 3 --crop 192 --learning-rate 8e-4
dod-train ddpm "${DDPM[@]}" --color-jitter 0.3 --continue --degraded-fraction 0.85 $(state 48) --seed 48 --steps 1300 --learning-rate 4e-4
dod-train stage1 "${ONE[@]}" "${BF16[@]}" --continue --color-jitter 0.1 $(state 50) --seed 50 --steps 1600 --batch-size 4 --crop 192 --learning-rate 1e-3
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${RELATIVE[@]}" --color-jitter 0.1 $(state 50) --seed 51 --steps 2800 --batch-size 3 --crop 192 --learning-rate 8e-4

# c from windows of 512 px, as the runtime takes it.
dod-train stage1 "${ONE[@]}" "${FP32[@]}" --continue --color-jitter 0.1 $(state 52) --seed 52 --steps 1700 --batch-size 4 "${TILE[@]}" --learning-rate 1e-3
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 $(state 52) --seed 53 --steps 1300 --batch-size 3 "${TILE[@]}" --learning-rate 8e-4
dod-train stage1 "${ONE[@]}" "${FP32[@]}" --continue --color-jitter 0.1 $(state 54) --seed 54 --steps 1400 --batch-size 2 "${WHOLE[@]}" --learning-rate 8e-4
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 $(state 54) --seed 55 --steps 480 --batch-size 3 "${TILE[@]}" --learning-rate 8e-4
dod-train calibrate "${IMAGES[@]}" --num-samples 130 --crop 512 --seed 78

# Any crop of a photograph; shares of the degradations.
dod-train stage1 "${ONE[@]}" "${FP32[@]}" --continue --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.2 --oversample blur $(state 56) --seed 56 --steps 600 --batch-size 2 "${WHOLE[@]}" --learning-rate 6e-4
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.15 --oversample blur noise $(state 56) --seed 57 --steps 1000 --batch-size 3 "${TILE[@]}" --learning-rate 8e-4
dod-train stage1 "${ONE[@]}" "${FP32[@]}" --continue --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.15 --oversample haze low-light $(state 58) --seed 58 --steps 650 --batch-size 2 "${WHOLE[@]}" --learning-rate 8e-4
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.1 --oversample blur blur blur noise $(state 58) --seed 59 --steps 1250 --batch-size 3 "${TILE[@]}" --learning-rate 8e-4
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.1 --oversample haze noise $(state 60) --seed 60 --steps 320 --batch-size 3 "${TILE[@]}" --learning-rate 6e-4
dod-train stage1 "${ONE[@]}" "${FP32[@]}" --relative --continue --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.2 --oversample haze blur $(state 61) --seed 61 --steps 700 --batch-size 2 "${WHOLE[@]}" --learning-rate 8e-4
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.15 --oversample haze noise blur $(state 61) --seed 62 --steps 1000 --batch-size 3 "${TILE[@]}" --learning-rate 8e-4

# Two dense blocks in each RRDB instead of three.
dod-train prune --overwrite "${IMAGES[@]}" --workers 1 --color-jitter 0.1 "${ANY[@]}" --num-samples 64 --crop 384 --seed 90
dod-train stage2 "${TWO[@]}" "${FP32[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.05 --oversample haze noise rain low-light $(state 91) --seed 91 --steps 900 --batch-size 3 "${TILE[@]}" --learning-rate 6e-4
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${RELATIVE[@]}" --color-jitter 0.1 "${ANY[@]}" --clean-fraction 0.05 --oversample noise noise noise rain $(state 91) --seed 92 --steps 700 --batch-size 3 "${TILE[@]}" --learning-rate 6e-4

# Soft samples, and restoration by the prototype of a named condition.
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${SOFT[@]}" --oversample haze noise noise rain rain low-light --soft 0.6 --seed 101 --steps 450 --learning-rate 6e-4
dod-train calibrate "${IMAGES[@]}" --num-samples 130 --crop 512 --seed 178 --soft 0.5 "${ANY[@]}"
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${SOFT[@]}" --oversample haze noise noise noise rain rain rain low-light --soft 0.65 --seed 102 --steps 1900 --learning-rate 7e-4
dod-train stage2 "${TWO[@]}" "${BF16[@]}" "${SOFT[@]}" --checkpoint build/presets/mini --out build/presets/mini-105 --oversample haze haze rain rain noise low-light --soft 0.6 --seed 105 --steps 1800 --batch-size 2 --tile-size 192 320 --learning-rate 6e-4
dod-train average --other build/presets/mini-105

# Gate and sharpening filter.
dod-train postprocess --overwrite "${IMAGES[@]}" --soft 0.6 --mist 0.3 --color-jitter 0.25 "${ANY[@]}" --clean-fraction 0.25 --oversample haze haze rain rain low-light --num-samples 14000 --num-pairs 16000 --crop 384 --seed 205 --workers 2 --precision bf16
