"""config.yaml: the configuration of a run, and in its last line the identity of the run and a checksum.

The identity tells the files of one run from those of another. It is drawn from the configuration when the run begins:
two runs of one configuration and seed are the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tripletmas.basics.files import checksum, damaged, save_text
from tripletmas.basics.yaml_files import read_mapping
from tripletmas.runs.checkpoint import REMEDY

_LAST = re.compile(rb"^# run ([0-9a-f]{16}), checksum ([0-9a-f]{8})\n\Z", re.MULTILINE)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a run that begins."""
    text = yaml.safe_dump(dict(config), sort_keys=False)
    plain = yaml.safe_dump({key: value for key, value in config.items() if key != "version"})
    run = hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
    save_text(path, f"{text}# run {run}, checksum {_checksum(run.encode(), text.encode())}\n")


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The configuration and the identity of the run, which is "" for a run of an earlier version.

    Raises:
        ValueError: if the file is damaged, or was changed since it was written.
    """
    try:
        text = path.read_bytes()
        config = read_mapping(path)
    except OSError as error:
        raise damaged(path, error, REMEDY) from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    last = _LAST.search(text)
    if last is None:
        return config, ""
    run, was, now = last[1].decode(), last[2].decode(), _checksum(last[1], text[: last.start()])
    if was != now:
        raise ValueError(
            f"{path} has been changed since it was written: restore it from a copy; or, if the change was meant, write "
            f"{now} at its end in place of {was}"
        )
    return config, run


def _checksum(run: bytes, text: bytes) -> str:
    return checksum(run + text)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two flat configurations differ, as `key: old -> new`; versions are no part of them."""
    return [
        f"{key}: {one.get(key)!r} -> {other.get(key)!r}"
        for key in sorted(one.keys() | other.keys())
        if key.split(".")[0] != "version" and one.get(key) != other.get(key)
    ]
