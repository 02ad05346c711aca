"""``disa import-gguf``: a GGUF file as a Hugging Face folder."""

from __future__ import annotations

import argparse


def import_gguf(options: argparse.Namespace) -> int:
    """Convert the file, and say what came of it."""
    from disa.cli.quiet import quiet_libraries
    from disa.lm.import_gguf import import_gguf as convert

    quiet_libraries()
    facts = convert(options.file, options.folder, options.dtype, options.stop)
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["stored"].items())
    print(f"{options.file}: {facts['says'].get('general.name', 'no name')}, SHA-256 {facts['sha256']}")
    print(f"tensors dequantised: {kinds}; embeddings {'tied' if facts['tied'] else 'not tied'}")
    print(f"{options.folder}: {facts['weights'] / 1e6:.0f} million weights in {facts['dtype']}; facts in gguf.json")
    return 0
