"""Write the references: ``python3 dev.py references``."""

from __future__ import annotations

from pathlib import Path

from docs.reference import commands, names

HERE = Path(__file__).parent
PAGES = {"cli.md": commands.write, "api.md": names.write}


def main() -> None:
    """Write each page that is not as it should be, and say which."""
    for name, write in PAGES.items():
        path = HERE / name
        text = write()
        is_same = path.exists() and path.read_text(encoding="utf-8") == text
        if not is_same:
            path.write_text(text, encoding="utf-8", newline="\n")
        print(f"docs/reference/{name}: {'as it was' if is_same else 'written'}")


if __name__ == "__main__":
    main()
