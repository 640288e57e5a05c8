"""Makes two labelled collections of colour images from published packages, for docs/results.md.

    python3 benches/make_collections.py OUT        # needs pillow, npm, apt-get and dpkg-deb; 410 MB of packages, a few minutes

OUT/emoji         64 x 64, colour with alpha: every emoji as four vendors draw it (npm's emoji-datasource-*), 9 categories.
    pretrain/     training emoji, those in five tones of skin too
    train/, val/  one tone; a fifth of the emoji, chosen by their code points, is held out: an emoji of another vendor is the same emoji
OUT/photographs   96 x 96, crops of 48 photographs that desktops ship as wallpapers (Debian 12); the photograph is the class.
    train/        from the left half of each
    val/          from its right half

Packages stay in OUT/packages and are not fetched again. The last lines are checksums over the names and pixels of what was made;
those of another Pillow may differ in photographs, by the rounding of its JPEG decoder and its resizing.
"""
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

from PIL import Image

VENDORS = ["apple", "facebook", "google", "twitter"]
EMOJI_VERSION = "16.0.0"
CHECKSUMS = {
    "emoji/pretrain": "d33095d1ace3a7b631d6b6be41a7220198adc8d3ed69f1bf79722c3c994df184",
    "emoji/train": "93064973acda8965d6865cb487fb059a45cfd6c921a2a1be34cabe21162a9404",
    "emoji/val": "6297b388bbfb28d3368d7d7d2a7743363ad918ddd16438426782c1e6334045fd",
    "photographs/train": "f89daf6a2f77cef70ee438518a60d3278967a15456e3d08e4c1d177d2f2d09fa",
    "photographs/val": "d16fb19675a5997550120522820dcb84c3bd895d588aa44ccf2ce94ee563ab34",
}

# Debian package -> photographs in it, without folders. Drawings and renderings are left out.
PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": [
        "Bridge_by_Sander_Klootwijk.jpg", "Dragonfly_by_Bolly.jpg", "Picture_0B_by_freespace.jpg", "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg", "aitzgorri_by_Aitzol_Berasategi.jpg", "free_by_Peter_Nerlich.jpg",
        "friends_by_Aitzol_Berasategi.jpg", "greentock_by_Peter_Nerlich.jpg", "life_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg", "seeding_by_Clements_Engelhardt.jpg", "sunset_by_Aitzol_Berasategi.jpg",
    ],
    "lomiri-wallpapers-20.04": ["Kleiber_by_Lukas_Baubkus.jpg"],
    "lxqt-themes": [
        "Butterfly-Kenneth-Wimer.jpg", "Valendas.png", "after-the-rain.jpg", "appleflower.png", "beam.png", "butterfly.png",
        "cloud.png", "drop.png", "flowers.png", "fog.jpg", "this-is-not-windows.jpg",
    ],
    "mate-backgrounds": [
        "Aqua.jpg", "Blinds.jpg", "Dune.jpg", "FreshFlower.jpg", "Garden.jpg", "GreenMeadow.jpg", "LadyBird.jpg", "RainDrops.jpg",
        "Storm.jpg", "TwoWings.jpg", "Wood.jpg", "YellowFlower.jpg",
    ],
    # The folder names the photograph here; its largest file is taken.
    "plasma-workspace-wallpapers": [
        "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite", "OneStandsOut",
        "Path", "summer_1am",
    ],
}
SHORT_SIDE = 1024  # every photograph is brought to this before it is cut
CROP_SIDES = (128, 512)  # of which a crop is taken, log-uniform
CROP_SIZE = 96
CROPS = {"train": 200, "val": 40}  # of each photograph


def run(command, folder):
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"`{command[0]}` is not installed")
    except subprocess.CalledProcessError as error:
        sys.exit(f"`{' '.join(command)}` failed with {error.returncode}")


def emoji_package(packages, vendor):
    name = f"emoji-datasource-{vendor}"
    path = packages / f"{name}-{EMOJI_VERSION}.tgz"
    if not path.exists():
        run(["npm", "pack", "--silent", f"{name}@{EMOJI_VERSION}"], packages)
    return tarfile.open(path)


def is_held_out(unified):
    """A fifth of the emoji, by a hash of their code points."""
    return hashlib.sha256(unified.encode()).digest()[0] % 5 == 0


def make_emoji(out, packages):
    for vendor in VENDORS:
        with emoji_package(packages, vendor) as package:
            emoji = json.load(package.extractfile("package/emoji.json"))
            wanted = {}
            for one in emoji:
                if one["category"] == "Component" or not one[f"has_img_{vendor}"]:
                    continue
                held_out, label = is_held_out(one["unified"]), one["category"].replace(" & ", "_and_")
                tones = [v for v in one.get("skin_variations", {}).values() if v[f"has_img_{vendor}"]]
                for picture in [one] + ([] if held_out else tones):
                    sets = ["val"] if held_out else ["pretrain"] + ["train"] * (picture is one)
                    wanted[f"package/img/{vendor}/64/{picture['image']}"] = [(s, label) for s in sets]
            for member in package:
                for name, label in wanted.get(member.name, []):
                    path = out / name / label / f"{vendor}-{os.path.basename(member.name)}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(package.extractfile(member).read())


def debian_files(packages, package):
    folder = packages / package
    if not folder.exists():
        if not list(packages.glob(f"{package}_*.deb")):
            run(["apt-get", "-qq", "download", package], packages)
        part = packages / f"{package}.part"
        run(["dpkg-deb", "-x", str(next(packages.glob(f"{package}_*.deb"))), str(part)], packages)
        part.rename(folder)
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]


def photograph(files, name):
    found = [p for p in files if p.name == name or (p.parts[-4:-1] == (name, "contents", "images"))]
    if not found:
        sys.exit(f"{name} is not in its package; this script is for Debian 12")
    with Image.open(max(found, key=lambda p: (p.stat().st_size, p.name))) as image:
        scale = SHORT_SIDE / min(image.size)
        size = tuple(max(round(side * scale), SHORT_SIDE) for side in image.size)
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def crops(half, count, rng):
    for _ in range(count):
        side = round(math.exp(rng.uniform(*map(math.log, CROP_SIDES))))
        side = min(side, *half.size)
        left, top = rng.randint(0, half.width - side), rng.randint(0, half.height - side)
        yield half.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def make_photographs(out, packages):
    rng = random.Random(0)
    for package, names in PHOTOGRAPHS.items():
        files = debian_files(packages, package)
        for name in names:
            whole, label = photograph(files, name), name.split(".")[0]
            middle = whole.width // 2
            halves = {"train": whole.crop((0, 0, middle, whole.height)), "val": whole.crop((middle, 0, *whole.size))}
            for part, half in halves.items():
                folder = out / part / label
                folder.mkdir(parents=True, exist_ok=True)
                for i, crop in enumerate(crops(half, CROPS[part], rng)):
                    crop.save(folder / f"{i:03}.png")


def checksum(folder):
    total, count = hashlib.sha256(), 0
    for path in sorted(folder.rglob("*.png"), key=lambda p: p.relative_to(folder).as_posix()):
        with Image.open(path) as image:
            total.update(path.relative_to(folder).as_posix().encode() + image.convert("RGBA").tobytes())
        count += 1
    return count, total.hexdigest()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1]).resolve()
    packages = out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    different = []
    for name, make in [("emoji", make_emoji), ("photographs", make_photographs)]:
        if (out / name).exists():
            sys.exit(f"{out / name} is there already; remove it or name another folder")
        make(out / name, packages)
        for part in sorted((out / name).iterdir()):
            count, found = checksum(part)
            key = f"{name}/{part.name}"
            print(f"{key}: {count} images, sha256 {found}")
            if CHECKSUMS.get(key) != found:
                different.append(key)
    if different:
        sys.exit(f"other images than docs/results.md was measured on: {', '.join(different)} (Pillow {Image.__version__})")


if __name__ == "__main__":
    main()
