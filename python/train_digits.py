"""Trains the package `digits`: a class-conditional Image Transformer on scikit-learn's 8x8 handwritten digits.

    python python/train_digits.py                 # trains on the whole training part, writes models/digits/
    python python/train_digits.py --validate      # holds a validation part out of the training part, writes nothing

Every fifth image (index % 5 == 0) is held out and read only once, after training, for the number in the manifest. Sizes
and length were chosen with --validate, which trains without the images of index % 5 == 1 and reports their bits/dim
along the way. The same seed, machine and PyTorch give the same weights; for the same bytes of weights.pt, whose
TorchScript code lists attributes in hash order, set PYTHONHASHSEED=0.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from pixeld.export import golden_sample, write_package
from pixeld.likelihood import log_probs
from pixeld.models.image_transformer import ImageTransformer, ImageTransformerConfig

BATCH = 32
LEVELS = 17
CLASS_DROPOUT = 0.1
EMA_DECAY = 0.998
GOLDENS = 3


def load_parts(validate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images int64 [n, 8, 8, 1] in 0..16 and classes int64 [n], then the same of the images to judge by."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).long()[..., None]
    classes = torch.from_numpy(digits.target).long()
    part = torch.arange(len(images)) % 5
    train, judge = ((part > 1), (part == 1)) if validate else ((part > 0), (part == 0))
    return images[train], classes[train], images[judge], classes[judge]


def augment(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Moves each image [n, 8, 8, 1], with the given probability, by one pixel in a random direction; zeros come in."""
    count = len(images)
    moves = torch.tensor([[0, 1], [2, 1], [1, 0], [1, 2]])  # corner of the window cut out of the padded image
    corner = moves[torch.randint(4, (count,), generator=generator)]
    corner[torch.rand(count, generator=generator) >= probability] = 1
    padded = functional.pad(images, (0, 0, 1, 1, 1, 1))
    steps = torch.arange(8)
    rows, columns = corner[:, 0, None] + steps, corner[:, 1, None] + steps
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def bits_per_dim(module: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Mean negative log2-likelihood per value, class given, float32."""
    module.eval()
    total = sum(log_probs(module, i, c).double().sum().item() for i, c in zip(images.split(128), classes.split(128)))
    return -total / images.numel() / math.log(2)


def train(config: ImageTransformerConfig, arguments: argparse.Namespace, images: Tensor, classes: Tensor,
          judge: tuple[Tensor, Tensor] | None) -> ImageTransformer:
    """Trains for `arguments.epochs` and returns the model with the averaged weights; prints progress."""
    generator = torch.Generator().manual_seed(arguments.seed)
    model = ImageTransformer(config)
    average = copy.deepcopy(model)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": arguments.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], lr=arguments.rate, betas=(0.9, 0.98))
    steps = arguments.epochs * (len(images) // BATCH)
    warmup = min(200, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1.0))))
    step, started = 0, time.time()
    for epoch in range(arguments.epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)[: len(images) // BATCH * BATCH]
        for rows in order.split(BATCH):
            batch = augment(images[rows], arguments.shift, generator)
            given = torch.rand(BATCH, generator=generator) >= CLASS_DROPOUT
            # bfloat16 matrix products halve the time on CPUs that have them; weights and loss stay float32.
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch, torch.where(given, classes[rows], -1))
            loss = functional.cross_entropy(logits.float().flatten(0, 3), batch.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            keep = min(EMA_DECAY, step / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            total += loss.item()
        if epoch % 5 == 4 or epoch + 1 == arguments.epochs:
            seen = f" validation {bits_per_dim(average, *judge):.4f}" if judge else ""
            print(f"epoch {epoch + 1} train {total / (len(images) // BATCH) / math.log(2):.4f}{seen} bits/dim, "
                  f"{time.time() - started:.0f} s", flush=True)
    return average.eval()


def parse() -> argparse.Namespace:
    """Command line; the defaults are the ones the shipped package was trained with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models" / "digits")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--model-width", type=int, default=96)
    parser.add_argument("--query-block", type=int, default=16)
    parser.add_argument("--norm", choices=["post", "pre"], default="post")
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--shift", type=float, default=0.0, help="probability of moving an image by one pixel")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    return parser.parse_args()


def main() -> None:
    """Trains, judges, exports."""
    arguments = parse()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    d = arguments.model_width
    config = ImageTransformerConfig(
        height=8, width=8, channels=1, levels=LEVELS, layers=arguments.layers, model_width=d, heads=4, key_width=d,
        value_width=d, feed_forward_width=2 * d, query_block=arguments.query_block, classes=10,
        norm=arguments.norm, dropout=arguments.dropout)
    images, classes, *judge = load_parts(arguments.validate)
    started = time.time()
    model = train(config, arguments, images, classes, judge if arguments.validate else None)
    seconds = time.time() - started
    if arguments.validate:
        return
    held_out, labels = judge
    held_out_bits = bits_per_dim(model, held_out, labels)
    print(f"held out {held_out_bits:.4f} bits/dim, {seconds:.0f} s")
    nats = -log_probs(copy.deepcopy(model).double(), held_out[:GOLDENS], labels[:GOLDENS]).flatten(1).sum(1)
    scores = [{"values": image.flatten().tolist(), "class": int(label), "nats": float(loss)}
              for image, label, loss in zip(held_out, labels, nats.detach())]
    samples = [golden_sample(model, 7, 0, 3), golden_sample(model, 100, 1, 8), golden_sample(model, 1000, 2, None)]
    write_package(
        arguments.out, model, config, "digits", "Handwritten digits, 8x8 pixels of 17 grey levels, by class",
        weights="weights.pt",
        data={"source": "scikit-learn load_digits: the test part of the UCI data set Optical Recognition of "
                        "Handwritten Digits (E. Alpaydin, C. Kaynak, 1998)",
              "licence": "CC BY 4.0", "split": "1797 images; held out: index % 5 == 0"},
        training={"script": "python/train_digits.py", "seed": arguments.seed, "seconds": round(seconds),
                  "parameters": sum(p.numel() for p in model.parameters())},
        results={"held_out_images": len(held_out), "held_out_bits_per_dim": round(held_out_bits, 5)},
        golden={"score": scores, "sample": samples})
    np.save(arguments.out / "held_out_images.npy", held_out.numpy().astype(np.uint8))
    np.save(arguments.out / "held_out_classes.npy", labels.numpy().astype(np.uint8))


if __name__ == "__main__":
    main()
