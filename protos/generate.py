"""Writes shared/pb from the .proto files with a pinned compiler; --check fails if the result differs.

The compiler is the oldest the runtime supports, so the committed code runs on every runtime that the
package's requirements allow. It lives in a throw-away environment and in no dependency group.
"""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
TARGET = PROTOS.parent / "shared" / "pb"
COMPILER = ["--with", "grpcio-tools==1.80.0", "--with", "mypy-protobuf==5.1.0", "--with", "setuptools<81"]


def generate(root: Path) -> None:
    """`root`/shared/pb holds the modules generated from every .proto file."""
    out = root / "shared" / "pb"
    out.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable, *COMPILER]
    command += ["python", "-m", "grpc_tools.protoc", f"-Ishared/pb={PROTOS}"]
    command += [f"--{kind}_out={root}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    subprocess.run([*command, *(f"shared/pb/{source}" for source in sources)], check=True)
    for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text("")


def files(root: Path) -> set[Path]:
    return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "shared" / "pb"
        if sys.argv[1:] == ["--check"]:
            same = files(fresh) == files(TARGET) and all(
                filecmp.cmp(fresh / name, TARGET / name, shallow=False) for name in files(fresh)
            )
            if not same:
                sys.exit("shared/pb is not what the .proto files generate; run `make generate`")
            return
        for name in files(TARGET) if TARGET.exists() else ():
            (TARGET / name).unlink()
        for name in sorted(files(fresh)):
            (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
            (TARGET / name).write_bytes((fresh / name).read_bytes())


if __name__ == "__main__":
    main()
