#!/usr/bin/env python3
"""Lays out the root file system of the images, in the stage that built the binary: what the dynamic loader needs and no more.

    rootfs.py --binary BINARY --crates BOM --out DIRECTORY
    rootfs.py --cuda SBOM --out DIRECTORY

writes two trees, one for each layer. `libraries/` has every shared library that `ldd` finds, with the licence of each Debian
package and its entry in /var/lib/dpkg/status.d, where scanners look for it. `program/` has the binary, the user, an empty
/models, and /opt/pixeld/sbom.cdx.json: the crates of BOM (CycloneDX, from cargo-cyclonedx), the wheels and the packages. The second form writes what the image for
GPUs has on top: below /opt/pixeld/cuda the libraries that the daemon loads for them, its settings, and SBOM with the wheels.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))
import setup  # noqa: E402  (which wheel each library of libtorch is from)

PROGRAM = "opt/pixeld"
USER = 65532


def said_by(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def needed(binary: Path, absent: str = "") -> list[Path]:
    """Every shared library that the loader maps for `binary`, but for `absent`, and the loader itself."""
    found = []
    for line in said_by("ldd", str(binary)).splitlines():
        name, _, place = line.strip().partition(" => ")
        path = (place or name).split(" (")[0]
        if path.startswith("/"):
            found.append(Path(path))
        elif not name.startswith("linux-vdso") and name != absent:
            sys.exit(f"rootfs: {binary} needs a library that is not here: {line.strip()}")
    return found


def debian_package(library: Path) -> str:
    """The package that `library` is from: dpkg knows a file by one of several names, since /lib is a link to /usr/lib."""
    for path in (library, Path("/usr") / library.relative_to("/"), library.resolve()):
        asked = subprocess.run(["dpkg-query", "--search", str(path)], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout.split(": ")[0]
    sys.exit(f"rootfs: {library} belongs to no Debian package")


def debian_component(package: str) -> dict:
    version, source, architecture = said_by(
        "dpkg-query", "--show", "--showformat", "${Version}\n${source:Package}\n${Architecture}", package
    ).splitlines()
    name = package.split(":")[0]
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}&distro=debian-12"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
            "properties": [{"name": "debian:source", "value": source}]}


def wheel_component(library: Path) -> dict:
    """The wheel that a library of libtorch was unpacked from."""
    for requirement, _, digest, members in (setup.TORCH, setup.CUDA_RUNTIME, setup.CUPTI):
        if f"lib/{library.name}" in members.values():
            name, version = requirement.split("==")
            purl = f"pkg:pypi/{name}@{version}"
            return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
                    "hashes": [{"alg": "SHA-256", "content": digest}]}
    sys.exit(f"rootfs: {library} is from none of the wheels of scripts/setup.py")


def lay_out_libraries(libraries: list[Path], torch: Path, root: Path) -> list[dict]:
    """Copies `libraries`, those of libtorch to where the binary's run path looks, and returns what they are from."""
    components = {}
    for library in libraries:
        if library.is_relative_to(torch):
            copy(library, root / PROGRAM / "lib" / library.name)
            component = wheel_component(library)
        else:
            copy(library, root / library.relative_to("/"))
            package = debian_package(library)
            component = debian_component(package)
            name = component["name"]
            copy(Path("/usr/share/doc") / name / "copyright", root / "usr/share/doc" / name / "copyright")
            status = root / "var/lib/dpkg/status.d" / name
            status.parent.mkdir(parents=True, exist_ok=True)
            status.write_text(said_by("dpkg-query", "--status", package))
        files = components.setdefault(component["bom-ref"], component).setdefault("properties", [])
        files.append({"name": "pixeld:file", "value": library.name})
    copy(Path("/etc/os-release"), root / "etc/os-release")
    return list(components.values())


# What the daemon or libtorch opens by name, which `ldd` does not see.
OPENED_FOR_CUDA = ("torch/lib/libtorch_cuda.so", "torch/lib/libtorch_cuda_linalg.so", "torch/lib/libcaffe2_nvrtc.so",
                   "nvidia/cudnn/lib/libcudnn_*.so.*", "nvidia/cu13/lib/libnvrtc.so.*", "nvidia/cu13/lib/libnvrtc-builtins.so.*")

# What the machine brings along that has the GPU.
DRIVER = "libcuda.so.1"


def lay_out_cuda(tree: Path, bom: dict, root: Path) -> None:
    """Copies what GPUs need of `tree`, apart from what the other image has, and tells `bom` what it is from."""
    opened = [library for pattern in OPENED_FOR_CUDA for library in sorted(tree.glob(pattern))]
    found = set(opened) | {Path(os.path.normpath(need)) for library in opened for need in needed(library, DRIVER)}
    there = {file["value"] for component in bom["components"] for file in component.get("properties", ())}
    found = {library for library in found if library.name not in there}
    add(bom, lay_out_libraries(sorted(library for library in found if not library.is_relative_to(tree)), tree, root))
    pins = dict(re.findall(r"^([\w-]+)==\S+ --hash=sha256:(\w+)$", setup.CUDA_REQUIREMENTS.read_text(), re.MULTILINE))
    for information in sorted(tree.glob("*.dist-info")):
        name, version = re.findall(r"^(?:Name|Version): (.*)$", (information / "METADATA").read_text(), re.MULTILINE)[:2]
        wanted = []
        for line in (information / "RECORD").read_text().splitlines():
            place = line.split(",")[0]
            if tree / place in found:
                copy(tree / place, root / PROGRAM / "cuda" / place)
                wanted.append({"name": "pixeld:file", "value": Path(place).name})
        for licence in [*information.rglob("*icen*e*"), *information.rglob("*ICEN*E*"), *information.rglob("NOTICE*")]:
            if wanted and licence.is_file():
                copy(licence, root / PROGRAM / "cuda/licenses" / name / licence.name)
        if wanted:
            version = version.split("+")[0]
            add(bom, [{"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}#cuda", "name": name, "version": version,
                       "purl": f"pkg:pypi/{name}@{version}", "hashes": [{"alg": "SHA-256", "content": pins[name]}],
                       "properties": wanted}])
    (root / PROGRAM / "sbom.cdx.json").write_text(json.dumps(bom, indent=1) + "\n")
    (root / PROGRAM / "cuda.toml").write_text('[engine]\nbackend = "torch"\ndevice = "auto"\n')


def add(bom: dict, components: list[dict]) -> None:
    """Tells `bom` that the program depends on `components`."""
    bom["components"] += components
    program = bom["metadata"]["component"]["bom-ref"]
    for entry in bom["dependencies"]:
        if entry["ref"] == program:
            entry.setdefault("dependsOn", []).extend(component["bom-ref"] for component in components)


def lay_out_program(binary: Path, bom: dict, root: Path) -> None:
    copy(binary, root / PROGRAM / "bin/pixeld")
    copy(REPOSITORY / "LICENSE", root / PROGRAM / "LICENSE")
    (root / PROGRAM / "sbom.cdx.json").write_text(json.dumps(bom, indent=1) + "\n")
    (root / "models").mkdir()
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/:/nologin\npixeld:x:{USER}:{USER}:pixeld:/:/nologin\n")
    (root / "etc/group").write_text(f"root:x:0:\npixeld:x:{USER}:\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--binary", "--crates", "--cuda"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    if arguments.cuda:
        lay_out_cuda(setup.cuda(), json.loads(arguments.cuda.read_text()), arguments.out)
    elif arguments.binary and arguments.crates:
        lay_out_cpu(arguments)
    else:
        parser.error("--cuda, or --binary and --crates")

    # The same libraries make the same layer, whenever it is built.
    for place, _, files in os.walk(arguments.out):
        for name in [".", *files]:
            os.utime(os.path.join(place, name), (0, 0))


def lay_out_cpu(arguments: argparse.Namespace) -> None:
    torch = Path(os.environ["LIBTORCH"])
    components = lay_out_libraries(needed(arguments.binary), torch, arguments.out / "libraries")
    rust = said_by("rustc", "--version").split()[1]
    components.append({"type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": rust})

    bom = json.loads(arguments.crates.read_text())
    add(bom, components)
    lay_out_program(arguments.binary, bom, arguments.out / "program")


if __name__ == "__main__":
    main()
