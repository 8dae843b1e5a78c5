"""Generates the stubs from the proto, and checks the proto against the lint rules and the released contract.

Run it with the Python of the generator's environment (constraints/proto.txt):

    python tools/contract.py stubs [FOLDER]       write the stubs; default folder: client/src
    python tools/contract.py lint                 check buf's STANDARD and COMMENTS rules
    python tools/contract.py breaking             check compatibility with proto/released/v1.binpb
    python tools/contract.py release              replace proto/released/v1.binpb by the current contract
    python tools/contract.py image FILE           write the contract with its comments as a descriptor set, which also
                                                  has google/rpc/error_details.proto

`--proto FOLDER` reads the contract from another folder than proto/.
"""

import argparse
import pathlib
import subprocess
import sys
import sysconfig
import tempfile

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).parents[1]
PROTO = ROOT / "proto"
CONTRACT = "isogloss/v1/embedding.proto"
ERROR_DETAILS = (
    "google/rpc/error_details.proto"  # sent inside google.rpc.Status, so that the contract does not import it
)
PACKAGES = pathlib.Path(sysconfig.get_path("purelib"))  # wheels contain google/rpc and google/protobuf
SCRIPTS = pathlib.Path(sysconfig.get_path("scripts"))


def compile_contract(proto: pathlib.Path, *outputs: str) -> None:
    """Runs protoc on the contract; `outputs` are its options, and further files.

    Raises:
        SystemExit: protoc failed; it has printed the reason.
    """
    includes = [f"-I{proto}", f"-I{PACKAGES}", f"-I{PACKAGES / 'grpc_tools' / '_proto'}"]
    plugins = [f"--plugin={name}={SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    if protoc.main(["protoc", *includes, *plugins, *outputs, CONTRACT]):
        raise SystemExit(1)


def stubs(proto: pathlib.Path, out: pathlib.Path) -> None:
    """Writes isogloss/v1/embedding_pb2(_grpc).py and their type stubs under the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    mypy = "--mypy_out=quiet", "--mypy_grpc_out=quiet"
    compile_contract(proto, f"--python_out={out}", f"--grpc_python_out={out}", *(f"{m}:{out}" for m in mypy))


def image(proto: pathlib.Path, file: pathlib.Path, *, comments: bool) -> None:
    """Writes the contract, its imports and the details of errors as one descriptor set, which buf reads."""
    source = ["--include_source_info"] if comments else []
    compile_contract(proto, "--include_imports", *source, f"--descriptor_set_out={file}", ERROR_DETAILS)


def buf(proto: pathlib.Path, verb: str, *arguments: str) -> int:
    """Runs a buf check on the contract without its imports; returns the exit status of buf."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "image.binpb"
        image(proto, file, comments=True)
        rules = ["--config", str(PROTO / "buf.yaml"), "--path", "isogloss"]
        return subprocess.run([SCRIPTS / "buf", verb, str(file), *rules, *arguments], check=False).returncode


def main() -> int:
    """Runs the verb of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["stubs", "lint", "breaking", "release", "image"])
    parser.add_argument("out", nargs="?", type=pathlib.Path, default=ROOT / "client" / "src")
    parser.add_argument("--proto", type=pathlib.Path, default=PROTO)
    args = parser.parse_args()
    released = PROTO / "released" / "v1.binpb"
    if args.verb == "stubs":
        stubs(args.proto, args.out)
    elif args.verb == "release":
        image(args.proto, released, comments=False)
    elif args.verb == "image":
        image(args.proto, args.out, comments=True)
    else:
        return buf(args.proto, args.verb, *(["--against", str(released)] if args.verb == "breaking" else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
