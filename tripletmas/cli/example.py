"""The command example: pictures to try on, and the commands that come next."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tripletmas.cli.console import make_parser
from tripletmas.cli.outputs import check_place

_NEXT = """\
next:
  tripletmas train --data folder --data.root {root} --data.class_from leaf --model conv4 --strategy mas --out {run}
  tripletmas index build {run} --images {root} --out {index}
  tripletmas query {index} {picture} -k 5 --html neighbours.html
  tripletmas resume {run}      # after another folder of pictures is there, such as {month}/mug
"""


def example(arguments: Sequence[str]) -> dict[str, Any]:
    """Draw pictures to try on: three months of a small shop, four products in each; the mug is in all of them."""
    parser = make_parser("example", example.__doc__)
    parser.add_argument("what", choices=["shop"], help="what to draw: shop, 240 pictures of 10 products")
    parser.add_argument("--out", type=str, default="shop", metavar="DIR", help="the folder to draw into")
    root = Path(parser.parse_args(arguments).out)
    check_place("--out", str(root))
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"--out {root} is not empty: name another folder")
    if root.exists() and not root.is_dir():
        raise ValueError(f"--out {root} is a file: name a folder")
    from tripletmas.data.shop import MONTHS, draw_shop

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as aside:  # whole, or not there
        drawn = Path(aside) / root.name
        count = draw_shop(drawn)
        os.replace(drawn, root)
    print(f"{root}: {count} pictures, of four products in each of {', '.join(MONTHS)}; the mug is in all of them")
    named = {
        "root": root,
        "run": Path("runs") / root.name,
        "index": "products.index",
        "picture": root / "month3" / "mug" / "000.jpg",
        "month": root / "month4",
    }
    print(_NEXT.format(**{name: shlex.quote(str(value)) for name, value in named.items()}), end="")
    return {"folder": str(root), "pictures": count}
