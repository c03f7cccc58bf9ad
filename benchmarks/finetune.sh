#!/usr/bin/env bash
# The pair fine-tuned on a task that it has never seen, and scored by lm-eval before and after: bash benchmarks/finetune.sh [FOLDER [STEPS [TRIALS]]]
# Task choice: multiple choice over a passage, at 1, 4 and 16 times the training length. Same steps and batches for both models.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-finetune}
steps=${2:-300}
trials=${3:-20}
mkdir -p "$folder" && cd "$folder"
score() { # NAME MODEL
    [ -d "runs/$1" ] || ssmax-eval lm-eval --model ssmax-eval --model_args "pretrained=$2,dtype=float32" --tasks ssmax_choice --batch_size auto \
        --metadata "{\"context_lengths\": [256, 1024, 4096], \"trials\": $trials}" --output_path "runs/$1" --log_samples
}
for law in softmax ssmax; do
    ssmax-eval train --recipe cpu --start "$law-bible-2m" --out "$law-choice" --set task=choice --set steps="$steps" \
        --set short_share=0 --set warmup_steps=10 --set spacing=40 --set answer_weight=4 --set text_weight=0.3
    score "$law-before" "$law-bible-2m"
    score "$law-after" "./$law-choice"
done
python "$here/finetune.py" runs
