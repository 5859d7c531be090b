#!/usr/bin/env python3
"""A small shop: pictures are drawn, learned, indexed, and served to browsers and programs. About a minute.

pip install "tripletmas[serve]"
python examples/serve.py        # then open http://127.0.0.1:8000, and drop a picture of shop/ there
"""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette

from tripletmas.cli.main import main as tripletmas
from tripletmas.serve import make_app

COMMANDS = """\
example shop
train --data folder --data.root shop --data.class_from leaf --model conv4 --strategy mas --out runs/shop
index build runs/shop --images shop --out products.index
"""


def shop(*more: str) -> Starlette:
    """The application over an index that is made where it is absent; `more` are options of train."""
    if not Path("products.index").exists():
        for command in COMMANDS.splitlines():
            words = command.split()
            if tripletmas([*words, *more] if words[0] == "train" else words):
                raise SystemExit(f"tripletmas {command} failed")
    return make_app("products.index")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(shop(), host="127.0.0.1", port=8000)
