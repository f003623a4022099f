"""Python side of pixeld: reference models, the noise and drawing laws, and the export of model packages.

Importing this package loads nothing heavy: ``pixeld.noise`` and ``pixeld.draw`` need numpy, everything that touches a
model needs PyTorch (``pip install pixeld[train]``).
"""
