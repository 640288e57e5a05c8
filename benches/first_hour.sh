#!/usr/bin/env bash
# Does pre-training help on small colour images? Everything that docs/results.md says about the two collections, three seeds.
#
#     python3 benches/make_collections.py COLLECTIONS
#     benches/first_hour.sh COLLECTIONS OUT [MINUTES]
#
# For each collection and seed: MINUTES (default 60) of pre-training by the recipe that the images choose, then probes of all layers beside
# raw pixels and random weights. Of the first seed also fine-tuning at 1, 10 and 100 % of the labels against scratch, three seeds.
# What is there already is not done again, so an interrupted script goes on. Takes many hours.
set -euo pipefail

if [ $# -lt 2 ] || [ ! -d "$1/emoji/train" ] || [ ! -d "$1/photographs/train" ]; then
    echo "usage: $0 COLLECTIONS OUT [MINUTES]; COLLECTIONS is made by benches/make_collections.py" >&2
    exit 2
fi
collections=$(realpath "$1") minutes=${3:-60}
simmim=$(realpath "${SIMMIM:-target/release/simmim}")
mkdir -p "$2"
cd "$2"

# once FILE COMMAND...: runs the command into FILE unless that is there.
once() {
    local file=$1
    shift
    [ -e "$file" ] && return
    echo "$*" >&2
    "$@" > "$file.part"
    mv "$file.part" "$file"
}

for set in photographs emoji; do
    labelled=("--data" "$collections/$set/train" "--val" "$collections/$set/val")
    images=$collections/$set/train
    [ -d "$collections/$set/pretrain" ] && images=$collections/$set/pretrain
    for seed in 0 1 2; do
        run=$set-$seed
        if [ -e "$run/config.toml" ] && [ ! -e "$run.txt" ]; then
            once "$run.txt" "$simmim" pretrain --out "$run" --resume
        else
            once "$run.txt" "$simmim" pretrain --data "$images" --minutes "$minutes" --seed "$seed" --out "$run"
        fi
        once "$run-probe.txt" "$simmim" probe --weights "$run" "${labelled[@]}"
    done
    once "$set-compare.txt" "$simmim" compare --weights "$set-0" "${labelled[@]}" --labels 0.01,0.1,1 --seeds 3
done
tail -n +1 ./*.txt
