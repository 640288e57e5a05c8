#!/usr/bin/env bash
# Kills a run at random moments, resumes it each time, and compares its final weights with those of a run that was left alone.
#
#     cargo build --release
#     [PRECISION=bf16] benches/kill_resume.sh [KILLS] [STEPS]
#
# Ends with an error unless model.safetensors of both runs are the same, byte for byte. A kill that meets a finished run does not
# count; where the run ends before all kills are done, start again with more steps.
set -euo pipefail
cd "$(dirname "$0")/.."
kills=${1:-20}
steps=${2:-400}
binary=${BINARY:-target/release/simmim}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
settings=(--recipe demo --seed 7 --threads 2 --steps "$steps" --precision "${PRECISION:-f32}" --set checkpoint.every_steps=5 --set validate.every_steps=50
          --set train.batch_size=16 --set validate.images=32)

"$binary" pretrain "${settings[@]}" --out "$work/whole" >"$work/whole.log" 2>&1
RANDOM=${SEED:-1}
done_kills=0
start=("${settings[@]}")
while ((done_kills < kills)); do
    "$binary" pretrain "${start[@]}" --out "$work/killed" >>"$work/killed.log" 2>&1 &
    process=$!
    sleep "0.$((RANDOM % 900 + 100))"
    if ! kill -9 "$process" 2>/dev/null; then
        wait "$process" || { tail -5 "$work/killed.log"; exit 1; }
        echo "the run ended after $done_kills kills: give more steps" >&2
        exit 1
    fi
    wait "$process" 2>/dev/null || true
    done_kills=$((done_kills + 1))
    # Killed before its config.toml was there, the run is to be started as if for the first time.
    if [[ -f "$work/killed/config.toml" ]]; then start=(--resume); fi
done
"$binary" pretrain "${start[@]}" --out "$work/killed" >>"$work/killed.log" 2>&1
cmp "$work/whole/model.safetensors" "$work/killed/model.safetensors"
lines() { wc -l <"$1/metrics.jsonl"; }
[[ $(lines "$work/whole") == $(lines "$work/killed") ]] || { echo "the metrics have other lines" >&2; exit 1; }
echo "$done_kills kills, $steps steps: the same weights"
