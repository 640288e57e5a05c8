"""Runs `simmim bench loader` and torchvision in turn, each on one thread, and prints a table of medians and ratios.

    cargo build --release
    python3 benches/make_photos.py PHOTOS SETS
    PYTHON=/path/to/venv/bin/python python3 benches/compare_loader.py SETS --rounds 5

SETS holds a folder for each case, as `make_photos.py` makes them. A round runs ours and torchvision one after another, so that a
machine that other work slows down slows all of them; the median over the rounds counts. CPU time is that of the whole process for ours
and of the measured part for torchvision; with other work on the machine it is the fairer figure. PYTHON names an interpreter with
torch, torchvision and pillow.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGES = {"a": 400, "b": 60, "c": 1500}
WAYS = ["pil", "v2", "simmim", "simmim --exact", "simmim --cache memory", "simmim --cache disk"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sets", metavar="SETS")
    p.add_argument("--cases", default="a,b,c")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--ways", default=",".join(WAYS), help="which to run")
    p.add_argument("--images", type=float, default=1.0, help="factor for the number of images measured")
    p.add_argument("--binary", default=os.path.join(HERE, "..", "target", "release", "simmim"))
    return p.parse_args()


def run(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.strip().splitlines()[-1]), used


def ours(binary, data, way, images, cache):
    command = [binary, "bench", "loader", "--data", data, "--image-size", "224", "--threads", "1", "--json"]
    command += way.split()[1:]
    if "disk" in way:
        command += ["--cache-path", cache]
    speed, _ = run(command + ["--images", str(images)])
    # CPU time by the difference of two runs: opening, the first epoch and the batches built ahead cancel out.
    _, long = run(command + ["--images", str(2 * images)])
    _, short = run(command + ["--images", str(images)])
    return speed["images_per_second"], (long - short) * 1e3 / images


def torchvision(data, way, images):
    python = os.environ.get("PYTHON", sys.executable)
    result, _ = run([python, os.path.join(HERE, "pytorch_loader.py"), "--data", data, "--way", way, "--images", str(images)])
    return result["images_per_second"], result["cpu_ms_per_image"]


def main():
    a = arguments()
    ways = a.ways.split(",")
    print("| set | way | images/s | CPU ms / image | images/s over pil | over v2 | CPU pil / this | CPU v2 / this |")
    print("|---|---|---|---|---|---|---|---|")
    for case in a.cases.split(","):
        data = os.path.join(a.sets, case)
        images = max(32, int(IMAGES.get(case, 400) * a.images) // 32 * 32)
        results = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as cache:
            for _ in range(a.rounds):
                for way in ways:
                    if way.startswith("simmim"):
                        factor = 4 if "cache" in way else 2
                        results[way].append(ours(a.binary, data, way, factor * images, cache))
                    else:
                        results[way].append(torchvision(data, way, images))
        median = {way: [statistics.median(r[i] for r in results[way]) for i in (0, 1)] for way in ways}
        for way in ways:
            speed, used = median[way]
            over = [f"{speed / median[w][0]:.2f}" if w in median else "" for w in ("pil", "v2")]
            cpu = [f"{median[w][1] / used:.2f}" if w in median else "" for w in ("pil", "v2")]
            print(f"| {case} | {way} | {speed:.0f} | {used:.3f} | {' | '.join(over + cpu)} |", flush=True)


if __name__ == "__main__":
    main()
