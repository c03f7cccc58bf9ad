#!/usr/bin/env bash
# Train the `gpu` recipe's pair on one GPU, probe it, and leave it in $OUT as shards under 16 MB and one archive of small files a model.
# Run in the repository's root; needs torch, transformers, accelerate, pandas, seaborn and typer, no network.
#   TEXT=path/to/text OUT=folder bash benchmarks/gpu.sh [more options of ssmax-eval train]
# A rehearsal on a CPU:
#   OUT=out LIMIT=2 bash benchmarks/gpu.sh --set steps=2 --set tokens_per_step=2048 --set warmup_steps=1 --set text=generated
set -euo pipefail
export PYTHONPATH=. PYTHONUNBUFFERED=1
work=$(mktemp -d)
mkdir -p "$OUT"
python -m ssmax_eval train --recipe gpu --attention softmax --attention ssmax ${TEXT:+--text "$TEXT"} --out "$work" "$@"
for model in "$work"/*/; do
    name=$(basename "$model")
    for shard in "$model"/*.safetensors; do cp "$shard" "$OUT/$name.$(basename "$shard")"; done
    tar -C "$model" --exclude='*.safetensors' -czf "$OUT/$name.tar.gz" .
done
python -m ssmax_eval needle --model softmax="$work/gpu-softmax-s0" --model ssmax="$work/gpu-ssmax-s0" --trials 20 \
    ${LIMIT:+--limit "$LIMIT"} --no-report --output-path "$work/results"
