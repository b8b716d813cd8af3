"""The tables of docs/reliability.md that commands write, each between markers of its own."""

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reliability.md"


def write(region: str, text: str, path: Path = PAGE) -> None:
    """Replaces what lies between `region`'s markers; ValueError where the page has none."""
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {region}: begin -->", f"<!-- {region}: end -->"
    if begin not in page or end not in page:
        raise ValueError(f"{path} has no {begin} and {end} to write between")
    head, rest = page.split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
