"""Makes the demonstration set: the first images of each class of Fashion-MNIST, in their original order.

Command:  apt-get install dataset-fashion-mnist && python3 make.py
Input:    /usr/share/datasets/fashion-mnist (Debian package dataset-fashion-mnist)
Output:   the four gzipped IDX files beside this script; the same bytes on every run with the same zlib.
"""

import gzip
import struct
from pathlib import Path

SOURCE = Path("/usr/share/datasets/fashion-mnist")
HERE = Path(__file__).parent
PIXELS = 28 * 28


def write(name: str, data: bytes) -> None:
    (HERE / name).write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


def select(part: str, per_class: int) -> None:
    images = gzip.decompress((SOURCE / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((SOURCE / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    taken = [0] * 10
    chosen = []
    for index, label in enumerate(labels):
        if taken[label] < per_class:
            taken[label] += 1
            chosen.append(index)
    pixels = b"".join(images[i * PIXELS : (i + 1) * PIXELS] for i in chosen)
    write(f"{part}-images-idx3-ubyte.gz", struct.pack(">IIII", 0x803, len(chosen), 28, 28) + pixels)
    write(f"{part}-labels-idx1-ubyte.gz", struct.pack(">II", 0x801, len(chosen)) + bytes(labels[i] for i in chosen))


select("train", 600)
select("t10k", 100)
