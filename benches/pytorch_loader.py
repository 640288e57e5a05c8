"""Images/s of torchvision on one thread: RandomResizedCrop(224, scale 0.67 to 1, antialias), flip, normalise; one JSON line.

    python3 benches/pytorch_loader.py --data FOLDER --way pil|v2 --images N

`pil` is ImageFolder with its own loader and the transforms on PIL images; `v2` decodes with torchvision.io and transforms tensors.
"""
import argparse
import json
import time

import torch
from torchvision import io, transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dataset(way, data, size):
    if way == "pil":
        steps = [transforms.RandomResizedCrop(size, scale=(0.67, 1.0), antialias=True), transforms.RandomHorizontalFlip(),
                 transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        return ImageFolder(data, transforms.Compose(steps))
    steps = [v2.RandomResizedCrop(size, scale=(0.67, 1.0), antialias=True), v2.RandomHorizontalFlip(),
             v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    read = lambda path: io.decode_image(io.read_file(path), mode=io.ImageReadMode.RGB)  # noqa: E731
    return ImageFolder(data, v2.Compose(steps), loader=read)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    p.add_argument("--way", choices=["pil", "v2"], required=True)
    p.add_argument("--images", type=int, default=500)
    p.add_argument("--image-size", type=int, default=224)
    a = p.parse_args()
    torch.set_num_threads(1)
    images = dataset(a.way, a.data, a.image_size)
    batch = torch.empty(32, 3, a.image_size, a.image_size)

    def load(count):
        # Into one batch in place: what a DataLoader with one worker does at best.
        for i in range(count):
            batch[i % 32] = images[i % len(images)][0]

    load(min(32, len(images)))
    start, used = time.perf_counter(), time.process_time()
    load(a.images)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"images_per_second": a.images / seconds, "cpu_ms_per_image": used * 1e3 / a.images}))


if __name__ == "__main__":
    main()
