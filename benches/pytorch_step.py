"""The PyTorch baseline of `simmim bench step` and, with --inference, of `simmim bench embed`: one step of SimMIM, forward, backward and AdamW; the tutorial's task on a ViT, the
official one on a Swin transformer.

    python benches/pytorch_step.py --model vit_small_patch32_224 --image-size 224 --batch 32 --threads 2 --json

Started by `python -m torch.distributed.run --nproc-per-node N`, it trains on N processes with DistributedDataParallel and gloo; --batch is
that of each, and the first prints.

Images are standard normal noise and stay the same; masks are drawn anew in every step, as the tutorial does, and their drawing
is inside the measured time. Needs torch and timm.

`images_per_second` is batch / median step. `peak_rss_bytes` is that of the whole process at the end, `import_rss_bytes` that
after the imports alone. `cpu_milliseconds` is the processor time of the median step over all threads: where it is well below
threads x `milliseconds`, other work held the processor and the images per second say more about that than about PyTorch.
"""
import argparse
import json
import math
import os
import resource
import statistics
import sys
import time

import timm
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F


def peak_rss():
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class SimMim(nn.Module):
    """The tutorial's model: no class token, no final norm, a linear head on the masked tokens."""

    def __init__(self, vit, mask_ratio):
        super().__init__()
        self.vit = vit
        rows, columns = vit.patch_embed.grid_size
        self.tokens = rows * columns
        self.masked = int(mask_ratio * self.tokens)
        if not 0 < self.masked <= self.tokens:
            raise ValueError(f"a mask ratio of {mask_ratio} masks {self.masked} of {self.tokens} tokens")
        self.patch = vit.patch_embed.patch_size
        self.mask_token = nn.Parameter(torch.randn(vit.embed_dim))
        self.decoder = nn.Linear(vit.embed_dim, 3 * self.patch[0] * self.patch[1])

    def forward(self, images):
        b, c, h, w = images.shape
        ph, pw = self.patch
        x = self.vit.patch_embed(images)
        indices = torch.randn(b, self.tokens).topk(self.masked, dim=1).indices
        mask = torch.zeros(b, self.tokens).scatter(1, indices, 1).bool()
        x = torch.where(mask[:, :, None], self.mask_token, x) + self.vit.pos_embed[:, self.vit.num_prefix_tokens:]
        x = self.vit.blocks(x)
        patches = images.view(b, c, h // ph, ph, w // pw, pw).permute(0, 2, 4, 1, 3, 5).reshape(b, self.tokens, -1)
        # The tutorial writes `x[mask]`. The indices pick the same tokens in another order, which the mean does not see, and
        # have a static shape, so that torch.compile gets one graph.
        encoded = x.take_along_dim(indices[:, :, None], 1)
        target = patches.take_along_dim(indices[:, :, None], 1)
        return F.l1_loss(self.decoder(encoded), target) / self.masked


SIZES = {"tiny": (96, 6, 3), "small": (96, 18, 3), "base": (128, 18, 4), "large": (192, 18, 6)}


def swin(name, image_size):
    """timm's Swin transformer of a name such as swin_base_patch4_window6_192, which its list of models need not hold."""
    parts = name.split("_")
    width, depth, heads = SIZES[parts[1]]
    window = int(next(p for p in parts if p.startswith("window")).removeprefix("window"))
    kind = timm.models.swin_transformer_v2.SwinTransformerV2 if parts[0] == "swinv2" else timm.models.swin_transformer.SwinTransformer
    return kind(img_size=image_size, patch_size=4, window_size=window, embed_dim=width, depths=(2, 2, depth, 2),
                num_heads=tuple(heads * 2 ** i for i in range(4)), num_classes=0, drop_path_rate=0.0)


class SwinSimMim(nn.Module):
    """The official task: masks in cells of what a token of the last stage stands for, a linear head on all tokens."""

    def __init__(self, encoder, image_size, mask_ratio):
        super().__init__()
        self.encoder, self.stride = encoder, 32
        self.cells = (image_size // self.stride) ** 2
        self.side = image_size // self.stride
        self.masked = math.ceil(mask_ratio * self.cells)
        self.mask_token = nn.Parameter(torch.zeros(encoder.embed_dim))
        self.decoder = nn.Sequential(nn.Conv2d(encoder.num_features, 3 * self.stride ** 2, 1), nn.PixelShuffle(self.stride))

    def forward(self, images):
        b = len(images)
        indices = torch.randn(b, self.cells).topk(self.masked, dim=1).indices
        cells = torch.zeros(b, self.cells).scatter(1, indices, 1).view(b, self.side, self.side)
        mask = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
        x = self.encoder.patch_embed(images)
        x = torch.where(mask[..., None].bool(), self.mask_token, x)
        x = self.encoder.norm(self.encoder.layers(x)).permute(0, 3, 1, 2)
        pixels = cells.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)
        difference = F.l1_loss(images, self.decoder(x), reduction="none")
        return (difference * pixels).sum() / (pixels.sum() + 1e-5) / 3


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="vit_small_patch32_224", help="timm name")
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--mask-ratio", type=float, default=0.5)
    p.add_argument("--steps", type=int, default=20, help="measured steps")
    p.add_argument("--warm-up", type=int, default=3, help="steps before them")
    p.add_argument("--compile", action="store_true", help="with torch.compile")
    p.add_argument("--autocast", action="store_true", help="products in bfloat16, which is less exact")
    p.add_argument("--inference", action="store_true", help="the encoder's features of the images instead of a step")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    a = p.parse_args()
    if min(a.batch, a.threads, a.steps) < 1 or a.warm_up < 0:
        p.error("--batch, --threads and --steps are at least 1")
    return a


def main():
    a = arguments()
    import_rss = peak_rss()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    if a.model.startswith("swin"):
        model = SwinSimMim(swin(a.model, a.image_size), a.image_size, a.mask_ratio).train()
    else:
        vit = timm.create_model(a.model, num_classes=0, img_size=a.image_size)
        model = SimMim(vit, a.mask_ratio).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=5e-2, fused=True)
    images = torch.randn(a.batch, 3, a.image_size, a.image_size)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        # DistributedDataParallel waits for a gradient of every parameter that wants one; the final norm and the class token have none.
        model(images[:1]).backward()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
        optimizer.zero_grad()
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    if a.inference:
        model = (model.encoder if a.model.startswith("swin") else model.vit).eval()
    forward = model.forward_features if a.inference else model
    forward = torch.compile(forward) if a.compile else forward

    def features():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=a.autocast):
            return forward(images).float().mean().item()

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.autocast):
            loss = forward(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step = features if a.inference else step
    losses = [step() for _ in range(a.warm_up)]
    seconds, cpu_seconds = [], []
    for _ in range(a.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    median = statistics.median(seconds)
    result = {
        "framework": "pytorch",
        "mode": ("compile" if a.compile else "eager") + (" bf16" if a.autocast else ""),
        "model": a.model,
        "image_size": a.image_size,
        "batch": a.batch,
        "threads": torch.get_num_threads(),
        "mask_ratio": a.mask_ratio,
        "ranks": ranks,
        "images_per_second": ranks * a.batch / median,
        "milliseconds": median * 1e3,
        "milliseconds_min": min(seconds) * 1e3,
        "milliseconds_max": max(seconds) * 1e3,
        "cpu_milliseconds": statistics.median(cpu_seconds) * 1e3,
        "load_average": os.getloadavg()[0],
        "steps": a.steps,
        "peak_rss_bytes": peak_rss(),
        "import_rss_bytes": import_rss,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    if ranks > 1:
        first = torch.distributed.get_rank() == 0
        torch.distributed.destroy_process_group()
        if not first:
            return
    if a.json:
        print(json.dumps(result))
    else:
        print(f"{a.model} {result['mode']}, batch {a.batch}, {result['threads']} threads: "
              f"{result['images_per_second']:.1f} images/s, {result['milliseconds']:.1f} ms a step "
              f"({result['milliseconds_min']:.1f} to {result['milliseconds_max']:.1f}), "
              f"{result['cpu_milliseconds']:.1f} ms of processor time, peak {result['peak_rss_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
