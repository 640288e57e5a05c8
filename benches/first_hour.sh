#!/usr/bin/env bash
# Does pre-training help on small colour images? Everything that docs/results.md says about the two collections.
#
#     python3 benches/make_collections.py COLLECTIONS
#     benches/first_hour.sh COLLECTIONS OUT [LENGTH]
#
# For each collection and seed: pre-training by the recipe that the images choose, with the loss on validation images, then probes of all layers
# beside raw pixels and random weights. Of the first seed also fine-tuning against scratch. What is there already is not done again, so an
# interrupted script goes on. LENGTH is how long to pre-train (default: --minutes 60). Takes many hours; shorter with
#
#     SEEDS="0"                              seeds of the pre-training (default: 0 1 2)
#     LABELS=0.1 METHODS=finetune            labels and methods to compare (default: 0.01,0.1,1 and finetune,probe; METHODS=none: no comparison)
#     FLAGS="--threads 1 --precision bf16"   arguments of every command
#     SETS="emoji"                           collections (default: photographs emoji)
set -euo pipefail

if [ $# -lt 2 ] || [ ! -d "$1/emoji/train" ] || [ ! -d "$1/photographs/train" ]; then
    echo "usage: $0 COLLECTIONS OUT [LENGTH]; COLLECTIONS is made by benches/make_collections.py" >&2
    exit 2
fi
collections=$(realpath "$1") out=$2
shift 2
length=("$@")
[ $# -gt 0 ] || length=(--minutes 60)
read -ra flags <<< "${FLAGS:-}"
simmim=$(realpath "${SIMMIM:-target/release/simmim}")
mkdir -p "$out"
cd "$out"

# once FILE COMMAND...: runs the command into FILE unless that is there.
once() {
    local file=$1
    shift
    if [ -e "$file" ]; then return; fi
    echo "$*" >&2
    "$@" > "$file.part"
    mv "$file.part" "$file"
}

for set in ${SETS:-photographs emoji}; do
    val=$collections/$set/val
    labelled=("--data" "$collections/$set/train" "--val" "$val" "${flags[@]}")
    images=$collections/$set/train
    groups=()
    if [ "$set" = emoji ]; then
        images=$collections/emoji/pretrain
        # The same emoji by four vendors, apple-1f600.png and so on, stays on one side of the probe's split.
        groups=(--groups '^[a-z]+-(.+)\.png$')
    fi
    for seed in ${SEEDS:-0 1 2}; do
        run=$set-$seed
        if [ -e "$run/config.toml" ] && [ ! -e "$run.txt" ]; then
            once "$run.txt" "$simmim" pretrain --out "$run" --resume "${flags[@]}"
        else
            once "$run.txt" "$simmim" pretrain --data "$images" --set "data.val_path=$val" --seed "$seed" --out "$run" "${length[@]}" "${flags[@]}"
        fi
        once "$run-probe.txt" "$simmim" probe --weights "$run" "${labelled[@]}" "${groups[@]}"
    done
    if [ "${METHODS:-}" != none ]; then
        first=${SEEDS:-0}
        once "$set-compare.txt" "$simmim" compare --weights "$set-${first%% *}" "${labelled[@]}" --labels "${LABELS:-0.01,0.1,1}" --seeds 3 \
            --methods "${METHODS:-finetune,probe}" --out "$set-compare"
    fi
done
tail -n +1 ./*.txt
