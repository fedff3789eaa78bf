#!/usr/bin/env bash
# All speed measurements on a GPU in one go, within ten minutes. Run it from the top of the checkout; where timm or
# lucidrains' package is missing, name what is there: ONLY="ours timm" bash benchmarks/gpu.sh
set -euo pipefail
out=${OUT:-benchmarks}
python benchmarks/pipeline.py --rounds 3 --out "$out/pipeline-cuda.json"
python benchmarks/speed.py --rounds 3 --modes float32 bfloat16 "bfloat16 compiled" --only ${ONLY:-ours timm lucidrains} \
    --out "$out/speed-cuda.json"
