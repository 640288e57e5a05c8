"""Runs `simmim bench step` and PyTorch in turn and prints a table of medians and ratios.

    cargo build --release
    PYTHON=/path/to/venv/bin/python python3 benches/compare_step.py --rounds 3 \
        vit_tiny_patch16_224:32:0.5 vit_small_patch32_224:32:0.5

Each argument is MODEL:BATCH:MASK_RATIO. A round runs each way once, one after another, so that a machine that other work slows
down slows all of them; the median over the rounds counts. A way is simmim or simmim-ISA (see `simmim bench step --isa`), eager or
compile, and any of these with -bf16: products in bfloat16, PyTorch's by autocast. PYTHON names an interpreter with torch and
timm.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cases", nargs="+", metavar="MODEL:BATCH:MASK_RATIO")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=10, help="measured steps of each run")
    p.add_argument("--binary", default=os.path.join(HERE, "..", "target", "release", "simmim"))
    p.add_argument("--embed", action="store_true", help="compare the encoder alone (`simmim bench embed`); the mask ratio is not used")
    p.add_argument("--ways", default="simmim,eager,compile", help="comma-separated; ratios are to the first")
    return p.parse_args()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def command(way, binary, python, embed):
    name, *options = way.split("-")
    if name == "simmim":
        isa = [option for option in options if option != "bf16"]
        precision = ["--precision", "bf16"] if "bf16" in options else []
        return [binary, "bench", "embed" if embed else "step"] + (["--isa", *isa] if isa else []) + precision
    mode, _, kind = way.partition("-")
    if mode not in ("eager", "compile") or kind not in ("", "bf16"):
        sys.exit(f"no way is called {way}: see --help")
    flags = ["--compile"] * (mode == "compile") + ["--autocast"] * bool(kind) + ["--inference"] * embed
    return [python, os.path.join(HERE, "pytorch_step.py")] + flags


def main():
    a = arguments()
    python = os.environ.get("PYTHON", sys.executable)
    modes = a.ways.split(",")
    print("| model | batch | mask | way | images/s | ms / step | peak memory MiB | times the first |")
    print("|---|---|---|---|---|---|---|---|")
    for case in a.cases:
        model, batch, ratio = case.split(":")
        common = ["--model", model, "--batch", batch, "--threads", str(a.threads), "--steps", str(a.steps), "--json"]
        common += [] if a.embed else ["--mask-ratio", ratio]
        size = ["--image-size", model.rsplit("_", 1)[1]]
        results = {mode: [] for mode in modes}
        for _ in range(a.rounds):
            for mode in modes:
                results[mode].append(run(command(mode, a.binary, python, a.embed) + common + size))
        median = {m: statistics.median(r["milliseconds"] for r in results[m]) for m in modes}
        for mode in modes:
            peak = max(r.get("peak_rss_bytes") or 0 for r in results[mode]) / 2**20
            print(f"| {model} | {batch} | {ratio} | {mode} | {int(batch) * 1e3 / median[mode]:.1f} | {median[mode]:.0f} "
                  f"| {peak:.0f} | {median[mode] / median[modes[0]]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
