#!/usr/bin/env bash
# Trains the same things in floats and in bfloat16 and prints what came of them: the demonstration run, 2,000 steps on Fashion-MNIST,
# and a fine-tuning of 500 steps of each of the latter, three seeds.
#
#     cargo build --release
#     benches/compare_precision.sh FASHION OUT
#
# FASHION is a folder with the four IDX files of Fashion-MNIST, OUT one for the runs. THREADS (1) a run; runs that are finished
# already are not repeated.
set -euo pipefail
fashion=$1 out=$2
binary=${BINARY:-$(dirname "$0")/../target/release/simmim}
threads=${THREADS:-1}
mkdir -p "$out"
quiet=(--threads "$threads" --set reconstruct.every_steps=0)

finished() { [[ -f "$1/model.safetensors" || -f "$1/best.safetensors" ]]; }
value() { grep -o "\"$2\":[0-9.e-]*" "$1/metrics.jsonl" | tail -1 | cut -d: -f2; }

for seed in 0 1 2; do
    for precision in f32 bf16; do
        common=(--precision "$precision" --seed "$seed" "${quiet[@]}")
        demo=$out/demo-$precision-$seed run=$out/fashion-$precision-$seed tuned=$out/tuned-$precision-$seed
        finished "$demo" || "$binary" pretrain "${common[@]}" --out "$demo" --overwrite >>"$out/log" 2>&1
        finished "$run" || "$binary" pretrain --recipe demo --data "$fashion" --steps 2000 --set train.batch_size=32 \
            --set data.held_out=1000 --set validate.images=1000 "${common[@]}" --out "$run" --overwrite >>"$out/log" 2>&1
        finished "$tuned" || "$binary" finetune --weights "$run" --data "$fashion/train-images-idx3-ubyte.gz" \
            --val "$fashion/t10k-images-idx3-ubyte.gz" --steps 500 --precision "$precision" --seed "$seed" --threads "$threads" \
            --out "$tuned" --overwrite >>"$out/log" 2>&1
        echo "$precision seed $seed: demo $(value "$demo" val_loss), Fashion-MNIST $(value "$run" val_loss), accuracy $(value "$tuned" val_top1)"
    done
done
