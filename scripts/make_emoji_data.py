"""Render the pictures of which ``train_text_to_image.py`` makes its data: emoji of five drawings.

    npm pack @iconify-json/noto @iconify-json/fluent-emoji-flat @iconify-json/emojione \
        @iconify-json/fxemoji @iconify-json/twemoji       (unpack each into SOURCES/NAME)
    pip install resvg_py pillow
    python scripts/make_emoji_data.py SOURCES icons.npz

Every thing of ``difftilt.tasks.emoji_words`` is looked up by its name in each of the sets, and
drawn without a background, 28x28 RGBA. Tinting, shifts and mirror images are made in training.

Licences of the drawings: noto Apache-2.0, fluent-emoji-flat MIT, emojione CC-BY 4.0, fxemoji
Apache-2.0, twemoji CC-BY 4.0.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py  # pyright: ignore[reportMissingImports]
from PIL import Image

from difftilt.tasks.emoji_words import THINGS

SIZE = 28
RENDERED = 112
SETS = ("noto", "fluent-emoji-flat", "emojione", "fxemoji", "twemoji")
NAMES = {"car": ("automobile",)}


def icon_of(icons: dict[str, Any], thing: str) -> dict[str, Any] | None:
    """A set's drawing of a thing, its face before its body; None if it has none."""
    for name in (f"{thing}-face", thing, *NAMES.get(thing, ())):
        found = icons["aliases"].get(name, {}).get("parent", name)
        if found in icons["icons"]:
            return icons["icons"][found]
    return None


def svg_of(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )


def drawn(svg: str) -> np.ndarray:
    """A drawing as (28, 28, 4) bytes, made smaller from a larger one."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def main(sources: Path, out: Path) -> None:
    pictures, things, styles = [], [], []
    for style, name in enumerate(SETS):
        found = next(sources.glob(f"*{name}*/**/icons.json"))
        icons = {"aliases": {}, **json.loads(found.read_text())}
        for index, thing in enumerate(THINGS):
            if (icon := icon_of(icons, thing)) is not None:
                pictures.append(drawn(svg_of(icons, icon)))
                things.append(index)
                styles.append(style)
    np.savez_compressed(out, pictures=np.stack(pictures), things=things, styles=styles)
    print(f"{len(things)} drawings of {len(set(things))} things in {len(SETS)} styles")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
