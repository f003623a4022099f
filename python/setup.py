"""What pyproject.toml cannot say: the modules of the wire are generated when the package is built (``stubs``)."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # setuptools builds without the project's own folder on the path

import stubs  # noqa: E402


class BuildPy(build_py):
    """Adds pixeld/v1."""

    def run(self) -> None:
        super().run()
        stubs.generate(ROOT if self.editable_mode else Path(self.build_lib))


setup(cmdclass={"build_py": BuildPy})
