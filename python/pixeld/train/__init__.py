"""Training of the reference models, from Python or as ``python -m pixeld.train``.

    from pixeld.models import build
    from pixeld.train import Settings, Trainer, fit, load_images, split

    images = load_images("images.npy", "classes.npy", levels=17)     # uint8 [n, H, W, C] and integers [n]
    train, judge = split(images, 0.1, seed=0)
    model = build("gated_pixel_cnn", height=8, width=8, channels=1, levels=17, classes=10)
    trainer = Trainer(model, train, Settings(epochs=40))
    fit(trainer, judge, out="out/digits")            # checkpoint.pt, samples.png and log.jsonl
    trained = trainer.averaged()                     # what `pixeld.export.write_package` takes

AdamW with a linear warm-up and a cosine to zero, clipped gradients, bfloat16 products where they are faster, and an
average of the weights (`Settings`). A run that was cut goes on from its checkpoint to the same weights, to the bit, on
the same machine with as many threads: the checkpoint holds the weights, their average, the optimiser, every generator
of random numbers and the place in the data.

Needs ``pip install pixeld[train]``.
"""

from pixeld.train.data import Images, load_images, shrunk, split
from pixeld.train.fit import fit
from pixeld.train.trainer import Settings, Trainer, bits_per_dim

__all__ = ["Images", "Settings", "Trainer", "bits_per_dim", "fit", "load_images", "shrunk", "split"]
