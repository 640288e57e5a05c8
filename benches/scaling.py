"""What ranks cost: measured on this machine, and what a cluster would do on paper.

    cargo build --release --features mpi -p simmim
    PYTHON=/path/to/venv/bin/python python3 benches/scaling.py measure --rounds 3 --batches 32,128
    python3 benches/scaling.py model

`measure` trains the tutorial's ViT-S/32 by turns in one process of two threads, on two ranks of one thread (plain, with moments shared out, with
gradients in bfloat16), as two processes that know nothing of each other (what two ranks would reach if nothing had to travel), and with PyTorch's
DistributedDataParallel over gloo, where PYTHON names an interpreter with torch and timm. Medians of the rounds; of each run the lines of its metrics
after the first. A batch is that of all ranks together.

`model` computes the time of a step on ranks that each take --share images, from the time that the rank computes, the bytes that travel, and a network
of latency alpha and bandwidth beta. A piece of S bytes on n ranks takes 2 (n - 1) alpha + 2 S (n - 1) / (n beta) + S gamma: a pairwise exchange, a
ring, and what the thread spends on copies and sums. With overlap a piece waits for the backward to fill it and for the piece before it; without, all
begin after the backward. Sums for moments that are shared out take half of that, and gathering the parameters the other half after the update.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# Parameters, and milliseconds of an image in a step on two cores of an AMD EPYC (Zen 5) in floats. That of ViT-B/16 was measured
# (docs/performance.md); the others follow from it by the multiplications of a forward pass (4.25, 16.87 and 59.7 billion).
MODELS = {"ViT-S/16": (21.7e6, 59.0), "ViT-B/16": (85.8e6, 233.0), "ViT-L/16": (303.3e6, 825.0)}
# Name, Gbit/s, seconds of latency: TCP over Ethernet, then what InfiniBand and RoCE give.
NETWORKS = [("10 Gbit/s", 10, 25e-6), ("25 Gbit/s", 25, 15e-6), ("100 Gbit/s", 100, 3e-6), ("400 Gbit/s", 400, 2e-6)]
# Seconds that the thread spends on a byte of gradients: measured on two ranks of one machine, docs/scaling.md.
GAMMA = 0.48e-9


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_subparsers(dest="what", required=True)
    m = what.add_parser("measure")
    m.add_argument("--binary", default=os.path.join(HERE, "..", "target", "release", "simmim"))
    m.add_argument("--rounds", type=int, default=3)
    m.add_argument("--steps", type=int, default=16)
    m.add_argument("--batches", default="32,128")
    m = what.add_parser("model")
    m.add_argument("--share", type=int, default=64, help="images of a step on each rank")
    m.add_argument("--speed", type=float, default=16.0, help="speed of a rank's machine, in machines of two cores")
    m.add_argument("--bucket-bytes", type=float, default=4 << 20)
    return p.parse_args()


def speeds(folder):
    """Images a second of the lines of a run after the first."""
    lines = [json.loads(line) for line in open(os.path.join(folder, "metrics.jsonl"))]
    return [line["images_per_second"] for line in lines if line.get("images_per_second")][1:]


def pretrain(binary, batch, threads, steps, out, more=()):
    return [binary, "pretrain", "--recipe", "tutorial_vit_small_patch32", "--steps", str(steps), "--threads", str(threads), "--out", out] + [
        part for value in (f"train.batch_size={batch}", "log.every_steps=4", "validate.every_steps=0", "validate.images=32", "data.workers=1",
                           "checkpoint.every_steps=0", "reconstruct.images=1", *more) for part in ("--set", value)]


def on_ranks(command):
    local = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "btl", "self,vader"]
    return ["mpirun", *local, "-n", "2", *command]


def run(commands):
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate() for process in running]
    for process, (out, err) in zip(running, said):
        if process.returncode != 0:
            sys.exit(f"{' '.join(process.args)}\n{out}{err}")
    return said[0][0]


def one_round(a, batch):
    """Images a second of every way."""
    result = {}
    with tempfile.TemporaryDirectory() as place:
        def trained(name, wrap=lambda command: command, batch=batch, threads=1, more=()):
            out = os.path.join(place, name)
            run([wrap(pretrain(a.binary, batch, threads, a.steps, out, more))])
            return statistics.median(speeds(out))
        result["one process, two threads"] = trained("alone", threads=2)
        outs = [os.path.join(place, name) for name in "ab"]
        run([pretrain(a.binary, batch // 2, 1, a.steps, out) for out in outs])
        result["two processes, nothing travels"] = sum(statistics.median(speeds(out)) for out in outs)
        result["two ranks"] = trained("ranks", on_ranks)
        result["two ranks, gradients in bfloat16"] = trained("rounded", on_ranks, more=["train.gradient_precision=bfloat16"])
        result["two ranks, moments shared out"] = trained("sharded", on_ranks, more=["train.shard_optimizer=true"])
    if "PYTHON" in os.environ:
        said = run([[os.environ["PYTHON"], "-m", "torch.distributed.run", "--nproc-per-node", "2", os.path.join(HERE, "pytorch_step.py"), "--json",
                     "--batch", str(batch // 2), "--threads", "1", "--steps", str(max(a.steps // 2, 4)), "--warm-up", "1"]])
        result["PyTorch, two processes of DistributedDataParallel"] = json.loads(said.strip().splitlines()[-1])["images_per_second"]
    return result


def measure(a):
    for batch in map(int, a.batches.split(",")):
        rounds = []
        for _ in range(a.rounds):
            rounds.append(one_round(a, batch))
            print(f"batch {batch}: {rounds[-1]}", file=sys.stderr, flush=True)
        medians = {way: statistics.median(one[way] for one in rounds) for way in rounds[0]}
        first = next(iter(medians.values()))
        print(f"\n| batch {batch} | images/s | times the first |\n|---|---|---|")
        for way, value in medians.items():
            print(f"| {way} | {value:.1f} | {value / first:.2f} |")


def piece_seconds(n, size, alpha, beta, gamma=GAMMA, rounds=2):
    """Seconds that a piece is on its way, in both directions."""
    return rounds * ((n - 1) * alpha + size * (n - 1) / n / beta) + size * gamma


def step_seconds(n, compute, parameters, gbit, alpha, bucket, overlap=True, rounded=False, sharded=False):
    """Seconds of a step of n ranks: forward a third of `compute`, backward two."""
    total = parameters * (2 if rounded else 4)
    pieces = max(1, round(total / bucket))
    beta = gbit * 1e9 / 8
    one = piece_seconds(n, total / pieces, alpha, beta, rounds=1 if sharded else 2)
    forward, backward = compute / 3, 2 * compute / 3
    done = 0.0
    for k in range(pieces):
        ready = backward * (k + 1) / pieces if overlap else backward
        done = max(done, ready) + one
    gather = parameters * 4 / bucket * piece_seconds(n, bucket, alpha, beta, rounds=1) if sharded else 0.0
    return forward + done + gather


def model(a):
    for name, (parameters, milliseconds) in MODELS.items():
        compute = a.share * milliseconds / 1e3 / a.speed
        print(f"\n{name}: {parameters / 1e6:.1f} million parameters, {a.share} images and {compute:.2f} s of computing on each rank, "
              f"pieces of {a.bucket_bytes / 2**20:.0f} MiB\n")
        ways = [("after the backward", dict(overlap=False)), ("during it", {}), ("during it, in bfloat16", dict(rounded=True)),
                ("moments shared out", dict(sharded=True))]
        print("| network | gradients travel | " + " | ".join(str(2 ** k) for k in (1, 3, 5, 7, 10)) + " ranks |")
        print("|---|---|" + "---|" * 5)
        for network, gbit, alpha in NETWORKS:
            for way, how in ways:
                cells = [f"{100 * compute / step_seconds(2 ** k, compute, parameters, gbit, alpha, a.bucket_bytes, **how):.0f}" for k in (1, 3, 5, 7, 10)]
                print(f"| {network} | {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parsed = arguments()
    {"measure": measure, "model": model}[parsed.what](parsed)
