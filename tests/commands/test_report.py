"""The report: complete, self-contained, true to its numbers; and honest where something is missing."""

import html.parser
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from omnihuman_jax.commands import report
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.evaluation import sheet
from omnihuman_jax.reporting import charts, filmstrip, sections
from omnihuman_jax.reporting.run_folder import ends_of_loss, key_numbers, read_folder, stages_of, worst_ratio
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.telemetry.metrics import MetricsWriter

STAGES = (("text and reference", 40, {}), ("audio", 80, {"audio": 0.5}), ("all", 140, {"audio": 0.5, "pose": 0.25}))


def moving_square(frames: int, shade: int) -> np.ndarray:
    video = np.full((frames, 64, 80, 3), shade, np.uint8)
    for t in range(frames):
        video[t, 20:40, 2 * t : 2 * t + 20] = (240, 180 - shade // 2, 60)
    return video


def metrics_lines() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(2, STAGES[-1][1] + 1, 2):
        name, _, extra = next(stage for stage in STAGES if step <= stage[1])
        targets = {"text": 0.9, "reference": 0.7, "audio": 0.0, "pose": 0.0} | extra
        loss = 0.4 + 0.9 * math.exp(-step / 30) + 0.03 * rng.standard_normal()
        line = {
            "step": step,
            "stage": name,
            "loss": loss,
            "grad_norm": 1 + rng.random(),
            "learning_rate": 1e-3 * min(1, step / 20),
        }
        for active in ConditionSet.every():
            if all(targets[c.label] > 0 for c in active) and rng.random() < 0.8:
                line[f"loss/{active.label}"] = loss + 0.1 * rng.standard_normal()
        for label, target in targets.items():
            line |= {
                f"ratio/{label}": target + (0.004 if label == "audio" and target else 0.0),
                f"ratio_target/{label}": target,
            }
        if step > 2:
            line |= {
                "tokens_per_s": 900 + 50 * rng.random(),
                "step_time_s": 1.1,
                "flops_per_s": 4.1e10,
                "matmul_peak_share": 0.41,
            }
        lines.append(line)
    return lines


def make_run(root: Path) -> Path:
    """A run folder with every part, written by the real writers where there is one."""
    writer = MetricsWriter(root / "run", step=0)
    for line in metrics_lines():
        writer.write(line)
    writer.close()
    (root / "run" / "config.json").write_text(json.dumps({"name": "a <test> & run", "seed": 1}))
    rows = [
        {
            "clip_id": "talk-000",
            "label": "talk.mp4 0.0-5.8 s",
            "video": "talk.mp4",
            "seconds": 5.8,
            "eligible": [c.label for c in Condition],
            "reasons": {},
        },
        {
            "clip_id": "mute-000",
            "label": "mute.mp4 0.0-4.0 s",
            "video": "mute.mp4",
            "seconds": 4.0,
            "eligible": ["text", "reference", "pose"],
            "reasons": {"audio": {"reason": "no <sound>", "score": 0.0, "threshold": 0.35}},
        },
    ]
    eligible = {c.label: sum(c.label in row["eligible"] for row in rows) for c in Condition}
    broken = [{"video": "broken.mp4", "reason": "broken.mp4: not a video"}]
    funnel = {
        "videos": 3,
        "clips": 2,
        "seconds": 9.8,
        "eligible": eligible,
        "rows": rows,
        "quarantine": broken,
        "dropped": [],
    }
    (root / "clips" / "sets").mkdir(parents=True)
    (root / "clips" / "sets" / "funnel.json").write_text(json.dumps(funnel))
    columns = {
        "window_id": np.array(["a", "b", "c"], object), "clip_id": np.array(["talk-000"] * 3, object),
        "split": np.array(["train"] * 3, object), "record": np.arange(3), "start_frame": np.arange(3),
        "latent_frames": np.array([1, 5, 5]), "latent_height": np.full(3, 8), "latent_width": np.full(3, 10),
        "height": np.full(3, 64), "width": np.full(3, 80), "text_tokens": np.full(3, 9),
        "num_references": np.ones(3, int),
        "duration_s": np.array([0.04, 0.68, 0.68]), "eligible": np.array([3, 15, 15]),
    }  # fmt: skip
    Catalog(**columns).save(root / "dataset")
    tone = 0.1 * np.sin(np.arange(16000) * 0.05).astype(np.float32)
    media_omnihuman.write_video(
        root / "samples" / "talking.mp4", moving_square(25, 40), 25, audio=tone, sample_rate=16000
    )
    media_omnihuman.write_video(
        root / "evaluation" / "a.mp4", np.concatenate([moving_square(17, s) for s in (20, 60, 90, 130)], axis=2), 25
    )
    rows_of_frames = {"truth": moving_square(17, 20), "own pose + audio  24.1 dB": moving_square(17, 60)}
    sheet.write_png(root / "contact_sheet.png", sheet.draw_rows(rows_of_frames, title="a, 17 frames"))
    psnr = {"sample": 24.1, "still": 20.0, "other_pose": 19.5, "other_audio": None}
    evaluation = {
        "step": 140, "weights": "ema", "sampling_steps": 20, "guidance": {"scale": 1.0}, "seed": 0,
        "mean_psnr": psnr, "mean_psnr_mouth": psnr,
        "mean_intervals": {
            "psnr": {"sample": {"low": 23.5, "high": 24.9}, "other_audio": {"low": None, "high": None}},
            "psnr_mouth": {},
        },
        "gain_over_still_db": 4.1, "worse_with_other_pose_db": 4.6,
        "worse_with_other_audio_db": None, "worse_with_other_audio_mouth_db": 0.3,
        "windows": [{"window_id": "a", "clip_id": "talk-000", "psnr": psnr, "psnr_mouth": None}],
    }  # fmt: skip
    (root / "evaluation.json").write_text(json.dumps(evaluation))
    (root / ".steps").mkdir()
    stamp = {
        "command": f"omnihuman generate --run {root / 'run'} --out {root / 'samples' / 'talking.mp4'}",
        "fingerprint": "x",
    }
    (root / ".steps" / "generate.json").write_text(json.dumps({**stamp, "seconds": 61.0, "peak_bytes": 2**31}))
    resume = {"checkpoint": 20, "killed_at": 26, "compared": [22, 24, 26], "values": 42, "different": []}
    train = {"command": "omnihuman train", "fingerprint": "y", "seconds": 300.0, "peak_bytes": 2**32, "resume": resume}
    (root / ".steps" / "train.json").write_text(json.dumps(train))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "demo")


class Markup(html.parser.HTMLParser):
    """Checks that tags close in order, and collects what a browser would fetch."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "source"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "poster", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def parsed(page: str) -> Markup:
    markup = Markup()
    markup.feed(page)
    assert markup.open == []
    return markup


def test_the_page_is_whole_and_fetches_nothing(run: Path) -> None:
    assert report.main(["--run", str(run)]) == 0
    page = (run / "report.html").read_text()
    fetched = parsed(page).fetched
    assert len(fetched) == 3 and all(url.startswith("data:") for url in fetched)
    assert "@import" not in page and "url(" not in page and "<script" not in page
    for title in ("Samples", "Evaluation", "Training", "Condition ratios", "The data", "Every command"):
        assert f"<h2>{title}</h2>" in page
    assert not [p for p in run.iterdir() if p.name.endswith(".part")]


def test_names_from_files_are_escaped(run: Path) -> None:
    page = report.page(read_folder(run))
    assert "a &lt;test&gt; &amp; run" in page and "no &lt;sound&gt;" in page and "<test>" not in page


def test_what_was_left_out_and_passed_over_is_there_as_text(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    file = root / "clips" / "sets" / "funnel.json"
    funnel = json.loads(file.read_text())
    name = "<script>alert(1)</script>\u202e\x1b[31m'\"&.mp4"
    funnel["quarantine"] = [{"video": name, "stage": "score", "reason": f"RuntimeError: {name}"}]
    funnel["passed_over"] = {"files of other types": [name, *(f"{i}.jpg" for i in range(40))]}
    file.write_text(json.dumps(funnel))
    page = sections.funnel_section(read_folder(root))
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\u001b[31m&#x27;&quot;&amp;.mp4"
    assert f"<td>{shown}</td><td>score</td><td>RuntimeError: {shown}</td>" in page.replace('<td class="">', "<td>")
    assert "Passed over" in page and "18.jpg and 21 more" in page


def test_the_data_page_is_linked_where_it_is(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(run, root)
    assert sections.DATA_PAGE not in sections.funnel_section(read_folder(root))
    (root / sections.DATA_PAGE).touch()
    assert f'href="{sections.DATA_PAGE}"' in sections.funnel_section(read_folder(root))


def test_the_videos_inside_are_the_files(run: Path) -> None:
    import base64

    page = report.page(read_folder(run))
    inside = {base64.b64decode(data) for data in re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page)}
    assert inside == {(run / "samples" / "talking.mp4").read_bytes(), (run / "evaluation" / "a.mp4").read_bytes()}


def test_key_numbers_are_those_of_the_files(run: Path) -> None:
    numbers = {label: (value, note) for label, value, note in key_numbers(run)}
    assert numbers["clips curated"] == ("2", "10 s of 3 videos; eligible: text 2, reference 2, audio 1, pose 2")
    assert numbers["windows encoded"][0] == "3"
    assert numbers["steps trained"] == ("140", "3 stages")
    assert (
        numbers["ratios met to"] == ("0.40 pp", "worst: audio in stage audio")
        or "audio in stage" in numbers["ratios met to"][1]
    )
    assert numbers["kill -9 and resume"][0] == "equal to the last bit"
    assert numbers["gain over a still picture"][0] == "+4.10 dB"
    assert numbers["another clip's pose"][0] == "-4.60 dB"
    assert numbers["another clip's voice, mouth"][0] == "-0.30 dB"


def test_means_stand_with_their_interval_where_there_is_one(run: Path) -> None:
    result = json.loads((run / "evaluation.json").read_text())
    assert sections.psnr_interval_cells(result) == ["23.50 to 24.90", "-", "-", "-", "-", "-"]
    assert sections.psnr_interval_cells({}) == ["-"] * 6  # of an evaluation of before
    assert "23.50 to 24.90" in report.page(read_folder(run))


def test_a_run_alone_is_enough_and_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "run"
    alone.mkdir()
    (alone / "metrics.jsonl").write_text((run / "run" / "metrics.jsonl").read_text() + '{"step": 142, "lo')
    page = report.write_report(alone).read_text()
    parsed(page)
    assert "<h2>Training</h2>" in page and "No samples here yet" in page and "omnihuman evaluate" in page
    assert read_folder(alone).metrics[-1]["step"] == 140


@pytest.mark.parametrize("prepare", [lambda p: None, lambda p: p.mkdir()])
def test_nothing_to_report_on_is_an_error_with_the_cure(tmp_path: Path, prepare: Any) -> None:
    prepare(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"nothing to report|no folder"):
        report.write_report(tmp_path / "empty")
    assert not list(tmp_path.rglob("*report*"))


def test_a_broken_file_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text((run / "run" / "metrics.jsonl").read_text())
    (tmp_path / "evaluation.json").write_text('{"windows": [')
    with pytest.raises(ValueError, match=r"evaluation\.json is not JSON"):
        report.write_report(tmp_path)


def test_a_resume_that_differs_is_not_called_equal(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    stamp = json.loads((copy / ".steps" / "train.json").read_text())
    stamp["resume"]["different"] = ["step 22 loss: 1.0, then 1.1"]
    (copy / ".steps" / "train.json").write_text(json.dumps(stamp))
    assert {label: value for label, value, _ in key_numbers(copy)}["kill -9 and resume"] == "1 DIFFERENT"


def test_losses_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    lines = [{"step": s, "stage": "one", "loss": v} for s, v in ((1, 1.0), (2, "nan"), (3, "inf"), (4, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.write_report(tmp_path).read_text()
    assert not re.search(r'points="[^"]*(nan|inf)', page)
    assert ends_of_loss(read_folder(tmp_path).metrics) == (1.0, 0.5, 1)


def test_stages_and_worst_ratio() -> None:
    lines = metrics_lines()
    assert [(name, records[-1]["step"]) for name, records in stages_of(lines)] == [
        (name, stop) for name, stop, _ in STAGES
    ]
    gap = worst_ratio(lines)
    assert gap is not None and gap[0] == pytest.approx(0.4) and gap[1].startswith("audio in stage")
    assert worst_ratio([{"step": 1, "stage": "x", "loss": 1.0}]) is None


def test_a_huge_video_is_named_instead_of_carried(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_VIDEO_BYTES", 10)
    page = sections.samples_section(read_folder(run))
    assert "too large to carry along" in page and "base64" not in page


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.37, 0.52, [0.4, 0.45, 0.5]), (0, 1000, [0, 200, 400, 600, 800, 1000])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_smooth_is_a_centred_mean_without_the_gaps() -> None:
    assert charts.smooth([1.0, 3.0, math.nan, 5.0, 7.0], 3) == pytest.approx([1.0, 2.0, 4.0, 6.0, 7.0])
    assert charts.smooth([2.0, 2.0, 2.0], 99) == pytest.approx([2.0, 2.0, 2.0])


def test_a_line_is_where_its_numbers_are() -> None:
    series = [charts.Series(label="y", x=[0, 10], y=[0.0, 1.0])]
    svg = charts.line_chart(series, width=160, height=100, y_range=(0, 1), x_range=(0, 10))
    (points,) = re.findall(r'points="([^"]+)"', svg)
    assert points == "48.0,66.0 148.0,10.0"
    assert charts.line_chart([], width=100, height=50).startswith("<svg")
    alone = charts.standalone(svg, series)
    assert 'viewBox="0 0 160 124"' in alone and f'points="{points}"' in alone and ">y</text>" in alone
    assert "var(" not in alone and "#1f5fbf" in alone
    ElementTree.fromstring(alone)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (1234.0, "1,234"), (41e9, "41G"), (12345.0, "12.3k"), (2.5e6, "2.5M"), (0.0005, "5e-4")],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_samples_of_training_are_a_filmstrip_over_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    writer = MetricsWriter(run, step=0)
    for line in metrics_lines():
        found = {"gain/audio": 0.1, "gain/audio_low": 0.05, "gain/audio_high": 0.15} if line["step"] % 20 == 0 else {}
        writer.write(line | found)
    writer.close()
    assert filmstrip.filmstrip_section(read_folder(run)) == ""
    for step in range(0, 200, 10):
        folder = run / "training_samples" / f"step_{step:08d}"
        sheet.write_png(folder / "a.png", moving_square(1, step)[0])
        media_omnihuman.write_video(folder / "a.mp4", moving_square(5, step), 25)
    markup = filmstrip.filmstrip_section(read_folder(run))
    shown = [int(step) for step in re.findall(r"<th>step ([0-9,]+)</th>", markup)]
    assert len(shown) == filmstrip.COLUMNS == markup.count("<img") and (shown[0], shown[-1]) == (0, 190)
    assert markup.count("<video") == 1 and "<b>a</b>, step 190" in markup
    assert "gain of audio" in markup and "gain of pose" not in markup and "0.100" in markup
    assert markup in report.page(read_folder(run))


def test_a_filmstrip_is_a_picture_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    writer = MetricsWriter(run, step=0)
    for line in metrics_lines():
        writer.write(line)
    writer.close()
    with pytest.raises(FileNotFoundError, match=r"samples\.interval"):
        filmstrip.write_filmstrip(tmp_path / "strip.png", read_folder(run))
    for step in (0, 10, 20):
        folder = run / "training_samples" / f"step_{step:08d}"
        for name in "ab":
            sheet.write_png(folder / f"{name}.png", moving_square(1, step)[0])
            media_omnihuman.write_video(folder / f"{name}.mp4", moving_square(5, step), 25)
    with pytest.raises(ValueError, match=r"as \.png .* or \.gif"):
        filmstrip.write_filmstrip(tmp_path / "strip.jpg", read_folder(run))
    assert report.main(["--run", str(run), "--filmstrip", str(tmp_path / "strip.gif")]) == 0
    filmstrip.write_filmstrip(tmp_path / "strip.png", read_folder(run))
    with Image.open(tmp_path / "strip.gif") as playing, Image.open(tmp_path / "strip.png") as still:
        assert playing.n_frames == 5 and playing.size == still.size and still.width > still.height
    assert "strip.gif" in capsys.readouterr().out
