"""Python side of pixeld: everything around the daemon, from a model to its samples.

    pixeld.models       reference modules of every family, to learn from and to train        [train]
    pixeld.train        a training loop, also ``python -m pixeld.train``                      [train]
    pixeld.export       from a module to the package that the daemon serves                  [train]
    pixeld.sample       slow and obvious sampling, and quick ways                            [train]
    pixeld.client       sample, stream and score with a daemon                               [client]
    pixeld.sheet        images as one PNG file                                               [client] or [train]
    pixeld.noise        the law of the noise: seed, image and rank to a uniform number
    pixeld.draw         the law of drawing: logits and that number to a value

Importing this package loads nothing. Its modules need numpy, and what ``pip install pixeld[train,client]`` brings.
"""
