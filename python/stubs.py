"""Makes pixeld/v1, the messages and services of ../proto as Python modules. They are generated, never committed.

    python python/stubs.py OUT          # writes OUT/pixeld/v1

``setup.py`` does this when the package is built, ``scripts/setup.py`` for running from the tree. Needs grpcio-tools.
"""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "proto"


def generate(out: Path) -> None:
    """Writes `out`/pixeld/v1."""
    files = sorted(map(str, PROTOS.glob("pixeld/v1/*.proto")))
    if not files:
        sys.exit(f"stubs: no protos in {PROTOS}: pixeld is built from a checkout of the whole repository")
    out.mkdir(parents=True, exist_ok=True)
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}",
                        f"--grpc_python_out={out}", *files])
    if code != 0:
        sys.exit(f"stubs: protoc ended with {code}")
    header = '"""Messages and services of the wire, generated from proto/."""\n'
    (out / "pixeld" / "v1" / "__init__.py").write_text(header)


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
