"""What memo is made of: a software bill of materials (CycloneDX 1.6, JSON) of what is installed here.

In: the packages that this Python has, followed from memo's own requirements. Out: one JSON document: name, version,
licence, package URL and dependencies of each.

    python -m memo.sbom [FILE.json] [--extra test …]
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from memo.errors import SettingsError
from memo.models import write_atomic

ROOT = "memo"


def required(of: Distribution, extras: Sequence[str]) -> list[Requirement]:
    """The requirements of a package that hold here, with these extras of it."""
    every = [Requirement(text) for text in of.requires or []]
    asked = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in every if one.marker is None or any(one.marker.evaluate(extra) for extra in asked)]


def followed(extras: Sequence[str]) -> dict[str, tuple[Distribution, list[str]]]:
    """Every package that memo needs here, and the names of those that it needs itself."""
    found: dict[str, tuple[Distribution, list[str]]] = {}
    seen, waiting = set[tuple[str, str]](), [(ROOT, tuple(extras))]
    while waiting:
        name, wanted = waiting.pop()
        try:
            there = distribution(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        _, needs = found.setdefault(name, (there, []))
        for one in required(there, wanted):
            key = canonicalize_name(one.name)
            needs += [key] * (key not in needs)
            if (key, ",".join(sorted(one.extras))) not in seen:
                seen.add((key, ",".join(sorted(one.extras))))
                waiting.append((key, tuple(one.extras)))
    return {name: (there, sorted(set(needs) & found.keys())) for name, (there, needs) in sorted(found.items())}


def component(name: str, there: Distribution) -> dict[str, Any]:
    """One package."""
    known = there.metadata
    url = f"pkg:pypi/{name}@{there.version}"
    about = {"type": "application" if name == ROOT else "library", "bom-ref": url, "name": name,
             "version": there.version, "purl": url}  # fmt: skip
    if summary := known.get("Summary"):
        about["description"] = summary
    if expression := known.get("License-Expression"):
        about["licenses"] = [{"expression": expression}]
    elif named := [line.split(" :: ")[-1] for line in known.get_all("Classifier") or [] if line.startswith("License")]:
        about["licenses"] = [{"license": {"name": one}} for one in named]
    return about


def bom(extras: Sequence[str] = ()) -> dict[str, Any]:
    """The whole document.

    Raises:
        SettingsError: memo itself is not installed, so nobody says what it needs.
    """
    every = followed(extras)
    if ROOT not in every:
        raise SettingsError("memo is not installed as a package here.", "Install it: pip install -e .")
    parts = {name: component(name, there) for name, (there, _) in every.items()}
    content = json.dumps([*parts.values()], sort_keys=True)
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",  # the same for the same packages
        "metadata": {"component": parts[ROOT]},
        "components": [part for name, part in parts.items() if name != ROOT],
        "dependencies": [{"ref": parts[name]["bom-ref"], "dependsOn": [parts[need]["bom-ref"] for need in needs]}
                         for name, (_, needs) in every.items()],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m memo.sbom", description="Write what memo is made of.")
    parser.add_argument("file", nargs="?", type=Path, help="default: standard output")
    parser.add_argument("--extra", action="append", default=[], help="optional dependencies too, such as test")
    chosen = parser.parse_args(arguments)
    try:
        text = json.dumps(bom(chosen.extra), indent=1, ensure_ascii=False) + "\n"
    except SettingsError as error:
        sys.exit(str(error))
    write_atomic(chosen.file, text) if chosen.file else sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
