"""`omnihuman report`: one self-contained HTML page of a run, out of what the other commands wrote.

Nothing is computed here that was not measured before, and nothing is loaded from a network: charts are inline SVG,
videos and pictures are inside the page. What a folder does not have yet is named with the command that makes it.
"""

import argparse
import html
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from omnihuman_jax.reporting import filmstrip, sections
from omnihuman_jax.reporting.run_folder import RunFolder, key_numbers, read_folder
from omnihuman_jax.runtime import bucket_folder, files
from omnihuman_jax.runtime.locations import StrPath, local, location


def page(folder: RunFolder) -> str:
    """The whole document."""
    css = importlib.resources.files("omnihuman_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    name = str((folder.config or {}).get("name") or folder.root.name)
    keys = "".join(
        f'<div class="key"><span>{html.escape(label)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for label, value, note in key_numbers(folder.root)
    )
    body = [
        f"<h1>{html.escape(name)}</h1>",
        '<p class="lead">A run of OmniHuman-JAX: what went in, what was learned, what comes out.</p>',
        f'<div class="keys">{keys}</div>',
        sections.samples_section(folder),
        filmstrip.filmstrip_section(folder),
        sections.evaluation_section(folder),
        sections.training_section(folder),
        sections.ratio_section(folder),
        sections.funnel_section(folder),
        sections.demo_section(folder),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light'
        ' dark">'
        f"<title>{html.escape(name)} - OmniHuman-JAX</title><style>{css}</style></head>"
        f"<body><main>{''.join(body)}<footer>Made by <code>omnihuman report --run"
        f" {html.escape(str(folder.root))}</code>. "
        "This page loads nothing from anywhere.</footer></main></body></html>\n"
    )


def write_report(run: StrPath) -> Path:
    """Writes `report.html` into the run's folder (of a bucket's: here), whole or not at all, and returns its path."""
    target = bucket_folder.output_of(run, "report.html")
    files.write_text(target, page(read_folder(bucket_folder.copy_of(run))))
    return target


def main(argv: Sequence[str]) -> int:
    """`omnihuman report`."""
    parser = argparse.ArgumentParser(
        prog="omnihuman report",
        description="One self-contained HTML page of a run: curves, ratios, funnel, evaluation, samples that play.",
        epilog="""examples:
  omnihuman report --run runs/demo
  omnihuman report --run runs/theatre/run --filmstrip runs/theatre/training.gif   # for a page of your own""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        type=location,
        required=True,
        help="folder of a demo (with clips/, dataset/, run/ ...), or a run folder alone, which may be a bucket's",
    )
    parser.add_argument(
        "--filmstrip",
        type=local,
        metavar="FILE",
        help="the samples that training made, over time, as one picture: FILE.png of middle frames, or FILE.gif, which"
        " plays",
    )
    options = parser.parse_args(list(argv))
    report = write_report(options.run)
    print(f"{report} ({report.stat().st_size / 2**20:.1f} MB): open it in a browser")
    if options.filmstrip:
        filmstrip.write_filmstrip(options.filmstrip, read_folder(bucket_folder.copy_of(options.run)))
        print(f"{options.filmstrip} ({options.filmstrip.stat().st_size / 2**10:.0f} KB): the samples over time")
    return 0
