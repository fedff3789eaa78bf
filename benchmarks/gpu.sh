#!/usr/bin/env bash
# Throughput on a GPU within ten minutes: the data pipeline, then the training step of ours and timm's TNT. Run it from the
# root of the checkout, installed or not. JOB=inference measures inference, ONLY="ours timm lucidrains" all the peers.
set -euo pipefail
out=${OUT:-benchmarks}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
"$python" benchmarks/pipeline.py --rounds 3 --out "$out/pipeline-cuda.json"
"$python" benchmarks/speed.py --rounds 3 --modes float32 bfloat16 "bfloat16 compiled" --jobs "${JOB:-training}" \
    --only ${ONLY:-ours timm} --out "$out/speed-cuda${JOB:+-$JOB}.json"  # notebook 10 shows the one of training
