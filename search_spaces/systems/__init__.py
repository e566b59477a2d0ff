"""The published systems as configs to run: ``nas run googlenet``. One TOML file a system, its first line what it is."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def available() -> dict[str, str]:
    """Every system by name, with the first line of its file."""
    found = {}
    for file in sorted(FOLDER.glob("*.toml"), key=lambda file: file.stem):
        first, _, _ = file.read_text(encoding="utf-8").partition("\n")
        found[file.stem] = first.lstrip("# ")
    return found


def find(name: str) -> Path | None:
    """The file of a system; None where there is none of that name."""
    return FOLDER / f"{name}.toml" if name in available() else None
