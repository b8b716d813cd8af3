"""Draws docs/pictures/architecture.svg: the way of the data on top, the rooms of the library by level below.

    python docs/pictures/architecture.py

The levels are those of tests/test_architecture.py, which fails when an import points up.
"""

import html
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

WIDTH, MARGIN, ROW, GAP = 1120, 24, 46, 12
WAY = (
    ("videos", "", False), ("curate", "score, tag", True), ("clips", "table, sets", False),
    ("encode", "latents, features", True), ("dataset", "records, catalog", False), ("plan", "data/plan.py", True),
    ("batch(k)", "packed windows", False), ("train", "training/", True),
    ("checkpoints", "checkpoint/", False), ("export", "generate", True),
)  # fmt: skip
SAYS = {
    "typing": "shapes, the batch", "segments": "windows of a pack", "plain_values": "dicts to dataclasses",
    "conditions": "sets of conditions", "serving": "what an export carries",
    "stages": "the schedule",
    "sharding": "the one table", "runtime": "processes, signals, storage", "attention": "kernels, ring",
    "encoders": "text, speech", "models": "the MMDiT", "codecs": "video VAEs", "diffusion": "flow matching, guidance",
    "data": "records, plan, packing", "checkpoint": "write, read, verify", "telemetry": "metrics, events, logs",
    "training": "step, state, optimizer", "evaluation": "metrics on arrays", "interop": "weights in and out",
    "scale": "plans for pods", "config": "the typed config", "reporting": "the HTML page",
    "assembly": "what a run is made of", "sampling": "a trained run opened", "training.resume": "where a run goes on",
    "commands": "one file a command", "cli": "omnihuman COMMAND",
}  # fmt: skip


def box(x: float, y: float, width: float, height: float, title: str, note: str, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6"/>'
        f'<text class="title" x="{x + width / 2:.0f}" y="{y + height / 2 - 2:.0f}">{html.escape(title)}</text>'
        f'<text class="note" x="{x + width / 2:.0f}" y="{y + height / 2 + 13:.0f}">{html.escape(note)}</text>'
    )


def way(y: float) -> list[str]:
    """The boxes from videos to an export, with arrows between them."""
    width = (WIDTH - 2 * MARGIN - (len(WAY) - 1) * GAP) / len(WAY)
    parts = []
    for index, (title, note, works) in enumerate(WAY):
        x = MARGIN + index * (width + GAP)
        parts.append(box(x, y, width, 54, title, note, "work" if works else "thing"))
        if index:
            parts.append(f'<path class="arrow" d="M {x - GAP + 1:.0f} {y + 27:.0f} h {GAP - 5}"/>')
    return parts


def levels(y: float) -> tuple[list[str], float]:
    """A row a level, the highest first; and where the picture ends."""
    from tests.test_architecture import LEVELS

    parts = []
    for number, rooms in reversed(list(enumerate(LEVELS))):
        width = (WIDTH - 2 * MARGIN - 30 - (len(rooms) - 1) * GAP) / max(len(rooms), 3)
        parts.append(f'<text class="level" x="{MARGIN + 8}" y="{y + ROW / 2 + 4:.0f}">{number}</text>')
        for index, room in enumerate(rooms):
            name = room.replace(".", "/")
            is_folder = (ROOT / "omnihuman_jax" / name).is_dir()
            kind = "folder" if is_folder else "file"
            x = MARGIN + 30 + index * (width + GAP)
            parts.append(box(x, y, width, ROW, name + ("/" if is_folder else ".py"), SAYS[room], kind))
        y += ROW + GAP
    return parts, y


def picture() -> str:
    rows, end = levels(148)
    texts = [
        f'<text class="head" x="{MARGIN}" y="32">From videos to an exported model</text>',
        f'<text class="head" x="{MARGIN}" y="134">omnihuman_jax by level: each imports only from the levels below it'
        "</text>",
    ]
    style = """
    svg { font-family: system-ui, sans-serif; background: #ffffff }
    rect { stroke: #5b6770; stroke-width: 1 } .work { fill: #dcebf7 } .thing { fill: #f6f6f4 }
    .folder { fill: #e9f3e6 } .file { fill: #fbf3df } .arrow { stroke: #5b6770; stroke-width: 1.5; fill: none }
    text { fill: #1d1f23 } .title { font-size: 13px; font-weight: 600; text-anchor: middle }
    .note { font-size: 10px; text-anchor: middle; fill: #5c616b } .head { font-size: 15px; font-weight: 600 }
    .level { font-size: 12px; fill: #5c616b }
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end:.0f}" role="img" '
        'aria-label="The way of the data, and the rooms of the library by level">'
        f"<style>{style}</style><rect x='0' y='0' width='{WIDTH}' height='{end:.0f}' fill='#ffffff' stroke='none'/>"
        + "".join([*texts, *way(44), *rows])
        + "</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
