"""Our pages in a real browser: `make browser`, or `pytest --slow=browser`. Debian 12: apt-get install
chromium-headless-shell.

A copy of the page gets a script that writes down what the browser made of it: our pages have none.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from omnihuman_jax.ablation.arm_commands import Places
from omnihuman_jax.commands import ablate, report
from omnihuman_jax.reporting import pairs_page, theatre_page
from omnihuman_jax.serving import media_omnihuman
from tests.commands.test_ablate import SMALL, made_up
from tests.commands.test_report import make_run, moving_square
from tests.training import runs

pytestmark = pytest.mark.browser
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_TOLD = "data-told"
_PROBE = """<script>
const told = () => document.body.setAttribute("data-told", JSON.stringify({
  videos: [...document.querySelectorAll("video")].map(v => ({
    seconds: v.duration, width: v.videoWidth, height: v.videoHeight, error: v.error && v.error.message})),
  pictures: [...document.querySelectorAll("img")].map(i => [i.complete, i.naturalWidth]),
  loaded: performance.getEntriesByType("resource").map(e => e.name.slice(0, 200)),
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
}));
setInterval(told, 50);
</script>"""


def opened(page: Path, width: int) -> dict[str, Any]:
    """What a window of that width made of the page, and of everything that it loads."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert program, f"no browser ({', '.join(BROWSERS)}): apt-get install chromium-headless-shell"
    copy = page.with_name(f"probed-{page.name}")
    copy.write_text(page.read_text().replace("</body>", f"{_PROBE}</body>"))
    argv = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    argv += ["--enable-logging=stderr", "--timeout=8000", "--virtual-time-budget=8000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, "\n".join(complaints)
    found = re.search(f'{_TOLD}="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:]
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The field's page of two pairs, one of them without its made video."""
    out = tmp_path_factory.mktemp("pairs")
    for side, shade in (("true", 20), ("made", 90)):
        media_omnihuman.write_video(out / side / "one.mp4", moving_square(25, shade), 25)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "windows": 2, "people": 2}
    row = {"name": "PSNR", "unit": "dB", "missing": "", "made": estimate, "true": None, "closeness": None, "note": ""}
    lacking = row | {"name": "FID", "unit": "", "missing": "needs Inception-v3 <b>'s weights</b>"}
    result = {"rows": [row, lacking], "pairs": 2, "people": 2, "of": {"run": "runs/a & b", "step": 3}}
    shown = [("one", "a", "true/one.mp4", "made/one.mp4"), ("two", "b", "true/one.mp4", "made/two.mp4")]
    (out / "field.html").write_text(pairs_page.page(result, shown))
    return out / "field.html"


@pytest.mark.parametrize("width", [1280, 480])
def test_videos_of_the_pairs_play_and_a_missing_one_is_noticed(pairs: Path, width: int) -> None:
    told = opened(pairs, width)
    *played, lost = told["videos"]
    assert [(v["width"], v["height"], v["seconds"], v["error"]) for v in played] == [(80, 64, 1.0, None)] * 3
    assert lost["error"] and told["wider"] <= 0
    assert all(name.startswith("file:") for name in told["loaded"])


@pytest.mark.parametrize("width", [1280, 480])
def test_the_theatre_s_videos_play_beside_their_table(tmp_path: Path, width: int) -> None:
    estimate = {"value": 0.58, "low": 0.46, "high": 0.68, "windows": 48, "people": 8}
    nothing = estimate | {"value": None, "low": None, "high": None}
    result = {
        "correlation": {"own sound": estimate, "no sound": nothing},
        "gesture_range": {"own sound": None},
        "joints": {"own pose": {"error": estimate, "correlation": estimate}},
        "gesture_spread": {"spread": estimate, "readout": estimate, "seeds": 3},
        "chains": {"seconds": 30.0, "the face's colours": estimate},
        "split": "unseen_face_and_speech",
        "step": 2400,
        "weights": "ema",
        "peak_lag_frames": 0,
    }
    media_omnihuman.write_video(tmp_path / "videos" / "a.mp4", moving_square(25, 20), 25)
    page = tmp_path / "lip_sync.html"
    page.write_text(theatre_page.page(result, [("a <window>", "videos/a.mp4")], ["truth", "own sound & more"]))
    told = opened(page, width)
    assert [(v["width"], v["height"], v["seconds"], v["error"]) for v in told["videos"]] == [(80, 64, 1.0, None)]
    assert told["wider"] <= 0 and all(name.startswith("file:") for name in told["loaded"])


@pytest.mark.parametrize("width", [1280, 480])
def test_the_ablations_clips_play_beside_their_curves(tmp_path: Path, width: int) -> None:
    places = Places(out=tmp_path, config=ablate.DEFAULT_CONFIG, theatres={"faces": tmp_path})
    made_up(places, runs.write_dataset(tmp_path / "dataset"))
    clips = list(tmp_path.glob("faces/*/*/training_samples/*/*.mp4"))
    for clip in clips:
        media_omnihuman.write_video(clip, moving_square(25, 20), 25)
    ablate.write_results(SMALL, places, {})
    told = opened(tmp_path / ablate.PAGE, width)
    assert told["videos"] and len(told["videos"]) <= len(clips)
    assert all((v["width"], v["height"], v["error"]) == (80, 64, None) for v in told["videos"])
    assert told["wider"] <= 0 and all(name.startswith("file:") for name in told["loaded"])


@pytest.mark.parametrize("width", [1280, 480])
def test_the_report_shows_its_videos_and_pictures_out_of_one_file(
    tmp_path_factory: pytest.TempPathFactory, width: int
) -> None:
    root = make_run(tmp_path_factory.mktemp("run"))
    moved = tmp_path_factory.mktemp("alone") / "report.html"
    shutil.copyfile(report.write_report(root), moved)
    told = opened(moved, width)
    assert told["videos"] and told["pictures"]
    assert all(v["error"] is None and v["width"] > 0 and v["seconds"] > 0 for v in told["videos"])
    assert all(complete and wide > 0 for complete, wide in told["pictures"])
    assert told["wider"] <= 0 and not [name for name in told["loaded"] if not name.startswith("data:")]
