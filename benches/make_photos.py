"""Makes the three sets of files that `compare_loader.py` reads, from a folder of photographs.

    python3 benches/make_photos.py PHOTOS OUT

PHOTOS is searched at any depth for JPEG, PNG and WebP pictures of at least 1400 x 1050 pixels. OUT gets

    a/  500 x 375 JPEG of about 50 KB         b/  2000 x 1500 JPEG of about 570 KB         c/  64 x 64 PNG

cut from them at random places (a fixed seed), each JPEG with 4:2:0 and the quality whose size comes nearest. Needs pillow.
"""
import io
import os
import random
import sys

from PIL import Image

SETS = [("a", (500, 375), "jpg", 96, 50_000), ("b", (2000, 1500), "jpg", 32, 570_000), ("c", (64, 64), "png", 512, None)]


def photos(folder):
    found = []
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                with Image.open(os.path.join(root, name)) as image:
                    if image.width >= 1400 and image.height >= 1050:
                        found.append(image.convert("RGB"))
    if not found:
        sys.exit(f"no picture of at least 1400 x 1050 pixels below {folder}")
    return found


def cut(image, size, rng):
    """A random part of 60 to 100 % of the width (at most), at the aspect ratio of `size`, resized to it."""
    width = min(image.width, image.height * size[0] / size[1]) * rng.uniform(0.6, 1.0)
    height = width * size[1] / size[0]
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return image.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))


def jpeg_of_size(image, wanted):
    def encode(quality):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return file.getvalue()

    low, high = 30, 98
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(encode(middle)) < wanted else (low, middle)
    return min(encode(low), encode(high), key=lambda data: abs(len(data) - wanted))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rng = random.Random(0)
    images = photos(sys.argv[1])
    for name, size, kind, count, wanted in SETS:
        # A folder of the first level is a class for torchvision's ImageFolder.
        folder = os.path.join(sys.argv[2], name, "all")
        os.makedirs(folder, exist_ok=True)
        bytes_written = 0
        for i in range(count):
            part = cut(images[i % len(images)], size, rng)
            path = os.path.join(folder, f"{i:04}.{kind}")
            if wanted is None:
                part.save(path)
            else:
                with open(path, "wb") as file:
                    file.write(jpeg_of_size(part, wanted))
            bytes_written += os.path.getsize(path)
        print(f"{name}: {count} files, {bytes_written / count / 1000:.0f} KB each")


if __name__ == "__main__":
    main()
