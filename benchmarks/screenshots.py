"""Pictures of a finished run's report as a browser shows it: wide, dark and narrow.

Wants Chromium or Chrome on the path::

    python benchmarks/screenshots.py runs/quickstart
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from page import FIGURES

SHOWN = {"wide": (1280, 1400), "dark": (1280, 2600), "narrow": (500, 1400)}
"""Width and height in pixels; the dark one reaches down to the first figures."""
COLOURS = 256


def take(report: Path, name: str, target: Path) -> None:
    """One picture, with a palette: a page has few colours, and the file stays small."""
    browser = shutil.which("google-chrome") or shutil.which("chromium")
    if browser is None:
        raise SystemExit("screenshots: no google-chrome or chromium on the path")
    width, height = SHOWN[name]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        # 0 is a dark scheme, 1 a light one.
        options.append(f"--blink-settings=preferredColorScheme={int(name != 'dark')}")
        options += [f"--window-size={width},{height}", f"--screenshot={picture}", report.resolve().as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=300)
        with Image.open(picture) as image:
            image.convert("RGB").quantize(COLOURS).save(target, optimize=True)


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with a report")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder to write to")
    options = parser.parse_args()
    report = options.run / "8_report" / "report.html"
    if not report.is_file():
        parser.error(f"{report} is not there: disa report makes it")
    for name in SHOWN:
        take(report, name, options.figures / f"report_{name}.png")
        print(options.figures / f"report_{name}.png")


if __name__ == "__main__":
    main()
