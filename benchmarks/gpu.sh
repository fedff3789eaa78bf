#!/usr/bin/env bash
# On a GPU, in about three minutes: the tests that need one, a profile of the training step, and throughput beside timm's
# TNT. Run it from the root of the checkout, installed or not. JOB=inference measures inference instead of training.
set -euo pipefail
out=${OUT:-benchmarks}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
"$python" -m pytest -o addopts= -p no:cacheprovider -W ignore -q -m gpu tests/kernels tests/training
"$python" benchmarks/profile_step.py --out "$out/profile-cuda.json"
"$python" benchmarks/speed.py --rounds 3 --modes float32 "bfloat16 compiled" --jobs "${JOB:-training}" \
    --only ${ONLY:-ours timm} --out "$out/speed-cuda${JOB:+-$JOB}.json"  # notebook 11 shows the one of training
