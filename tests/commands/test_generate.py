"""`omnihuman generate`: what drives what, files and their lengths, segments, and errors that a user can act on."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from omnihuman_jax.codecs.codec import load_codec
from omnihuman_jax.commands import generate
from omnihuman_jax.data.records import DatasetSpec
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.evaluation.sheet import to_float
from omnihuman_jax.sampling import driving, trained_range, trained_run
from omnihuman_jax.serving import media_omnihuman, pictures_omnihuman
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.serving.windows_omnihuman import segment_schedule
from tests.codecs import vae_folders
from tests.sampling import tiny_run

WIDE = {"z_dim": 48, "latents_mean": (0.0,) * 48, "latents_std": (1.0,) * 48}
QUICK = SamplingConfig(num_steps=2, guidance=GuidanceConfig(scale=2.0))


@pytest.fixture(scope="module")
def pose(tiny):
    return tiny.clips / "poses" / "clip0.npz"


def arguments(tiny, talking, out, *more: str) -> list[str]:
    return ["--run", str(tiny.run), "--image", str(talking), "--out", str(out), "--steps", "2", *more]


@pytest.mark.parametrize(
    ("audio", "with_pose", "text", "active", "guided"),
    [
        (True, False, "a man", "text+reference+audio", True),
        (False, True, None, "reference+pose", False),
        (True, True, "a man", "text+reference+audio+pose", True),
        (False, False, None, "reference", False),
    ],
)
def test_driving_signals_activate_the_papers_sets(run, talking, pose, tmp_path, audio, with_pose, text, active, guided):
    request = driving.Request(
        image=talking,
        audio=talking if audio else None,
        pose=pose if with_pose else None,
        text=text,
        seconds=0.36,
        size=(32, 48),
    )
    made = generate.generate(run, request, tmp_path / "out.mp4", config=QUICK)
    assert (made.active.label, made.guided, made.frames, made.segments) == (active, guided, 9, 1)
    header = media_omnihuman.probe(made.path)
    assert (header.frames, header.height, header.width, header.fps, header.codec) == (9, 32, 48, 25, "h264")
    assert header.has_audio == audio


def test_a_long_video_is_chained_by_one_program_and_is_as_long_as_its_sound(run, talking, tmp_path):
    heard: list[tuple[float, int]] = []
    made = generate.generate(
        run,
        driving.Request(image=talking, audio=talking, seed=1),
        tmp_path / "out.mp4",
        config=QUICK,
        on_progress=lambda done, total: heard.append((done, total)),
    )
    assert (made.frames, made.segments, made.compilations) == (30, 7, 1)
    assert [seam.frame for seam in made.seams] == [9, 13, 17, 21, 25, 29]
    # Motion frames are decoded from latents that were given clean: what the codec keeps of its own output.
    assert all(seam.overlap_psnr_db > 25 for seam in made.seams)
    assert heard[-1] == (pytest.approx(7), 7) and all(a[0] <= b[0] for a, b in itertools.pairwise(heard))
    header, sound = media_omnihuman.probe(made.path), media_omnihuman.read_audio(made.path)
    assert header.frames == 30 and header.duration_s == pytest.approx(1.2, abs=0.04)
    driver = media_omnihuman.read_audio(talking)
    assert len(sound) == pytest.approx(1.2 * 16_000, abs=64)
    length = min(len(sound), len(driver))
    assert np.corrcoef(sound[:length], driver[:length])[0, 1] > 0.95, "the sound is the driving one, in time"


@pytest.mark.parametrize("drives", ["text", "audio", "pose"])
def test_without_an_image_the_person_is_made_up(run, talking, pose, tmp_path, drives, capsys):
    request = driving.Request(**{drives: {"text": "a man", "audio": talking, "pose": pose}[drives]}, seconds=0.3)
    made = generate.generate(run, request, tmp_path / "out.mp4", config=QUICK)
    assert made.active.label == drives and (made.height, made.width) == (32, 48)
    assert media_omnihuman.probe(made.path).frames == made.frames == 8
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_far_from_the_data_is_said(run, talking, tmp_path, capsys):
    def hears(size: tuple[int, int], frames: int) -> str:
        config = dataclasses.replace(QUICK, segment_frames=frames, num_steps=1)
        request = driving.Request(image=talking, seconds=frames / 25, size=size)
        generate.generate(run, request, tmp_path / "out.mp4", config=config)
        return capsys.readouterr().err

    assert hears((32, 48), 9) == ""
    far = hears((16, 64), 9)
    assert "16x64 pixels are far from all 2 sizes trained on" in far and "give --size 32x48" in far
    assert "segments of 25 frames (1.00 s) are far from all lengths" in hears((48, 32), 25)


def test_a_prompt_is_cut_where_the_captions_of_the_data_were(run):
    request = driving.Request(image="not read", text="a man speaks a man speaks")
    whole, _ = driving.encode_text(run, request)
    assert len(whole) == 8  # its words, and the two tokens around them
    short = dataclasses.replace(run, spec=dataclasses.replace(run.spec, max_text_tokens=5))
    assert len(driving.encode_text(short, request)[0]) == 5


@pytest.fixture(scope="module")
def run_of_a_vae(tiny, tmp_path_factory):
    """The tiny run, as if its latents had been made by an autoencoder of as many channels."""
    folder = tmp_path_factory.mktemp("vae_run")
    shutil.copytree(tiny.run, folder / "run")
    vae = vae_folders.write_vae(folder / "vae", sizes=WIDE)
    codec = load_codec(str(vae), {"chunk_latents": 2})
    spec = DatasetSpec.load(folder / "run")
    hashes = {f"codec/{name}": digest for name, digest in codec.sha256.items()} | dict(spec.encoder_sha256)
    dataclasses.replace(spec, codec=codec.name, codec_options=codec.options, encoder_sha256=hashes).save(folder / "run")
    return folder


@pytest.mark.slow
def test_a_run_is_decoded_by_the_autoencoder_that_encoded_its_data(run_of_a_vae, talking, tmp_path):
    """Found where it was, or where --codec says that it is now; its weights are looked at."""
    moved = shutil.copytree(run_of_a_vae / "vae", tmp_path / "moved")
    opened = trained_run.open_run(run_of_a_vae / "run", codec=str(moved))
    codec = load_codec(str(moved), {"chunk_latents": 2})
    pictures = tiny_run.moving_picture(8, 5, 16, 16)
    latents = trained_run.encode_pictures(opened, pictures)
    np.testing.assert_array_equal(latents, codec.encode(pictures))
    np.testing.assert_array_equal(trained_run.decode_pictures(opened, latents), codec.decode(latents))
    vae_folders.write_vae(moved, changed={"quant_conv.bias": np.ones(96, np.float32)}, sizes=WIDE)
    with pytest.raises(ValueError, match=r"moved is not the codec that the run's data were encoded with.*--codec"):
        trained_run.open_run(run_of_a_vae / "run", codec=str(moved))


@pytest.mark.slow
def test_a_long_video_through_an_autoencoder(run_of_a_vae, talking, tmp_path):
    opened = trained_run.open_run(run_of_a_vae / "run")
    request = driving.Request(image=talking, audio=talking, seconds=0.52, size=(32, 48))
    made = generate.generate(opened, request, tmp_path / "out.mp4", config=QUICK)
    assert (made.frames, made.segments) == (13, 2) and media_omnihuman.probe(made.path).frames == 13


def test_motion_frames_are_the_last_decoded_frames_encoded_again(run, talking):
    signals = driving.read_signals(run, driving.Request(image=talking, size=(32, 48)), 9)
    segment = segment_schedule(13, 9)[1]
    frames = tiny_run.moving_picture(8, 5, 32, 48)
    window = generate.window_of(run, signals, segment, frames)
    assert window.motion and window.slot == 1
    np.testing.assert_array_equal(window.latents_FHWC[:2], trained_run.encode_pictures(run, frames))
    np.testing.assert_array_equal(window.latents_FHWC[2:], 0)
    first = generate.window_of(run, signals, segment_schedule(13, 9)[0], None)
    assert not first.motion and not first.latents_FHWC.any()


def test_a_segment_has_its_own_rows_with_real_margins_and_none_beyond_the_ends(run, talking):
    signals = driving.read_signals(run, driving.Request(image=talking, audio=talking, size=(32, 48)), 9)
    segments, margin = segment_schedule(signals.frames, 9), run.spec.margin
    assert signals.audio_TE.shape == (30, run.spec.audio_width)
    for segment in (segments[0], segments[2], segments[-1]):
        window = generate.window_of(run, signals, segment, None)
        rows = np.arange(segment.start - margin, segment.stop + margin)
        real = (rows >= 0) & (rows < 30)
        np.testing.assert_array_equal(window.audio_valid_T, real)
        np.testing.assert_array_equal(window.audio_TE[real], signals.audio_TE[rows[real]])
        np.testing.assert_array_equal(window.audio_TE[~real], 0)


@pytest.mark.slow
def test_same_seed_same_video_and_flags_reach_the_sampler(tiny, talking, tmp_path, capsys):
    def make(name: str, *flags: str) -> np.ndarray:
        out = tmp_path / f"{name}.mp4"
        assert generate.main(arguments(tiny, talking, out, "--seconds", "0.3", "--size", "32x48", *flags)) == 0
        return media_omnihuman.read_video(out).astype(int)

    base = make("base")
    assert "8 frames (0.32 s) of 32x48, driven by reference" in capsys.readouterr().out
    np.testing.assert_array_equal(make("again"), base)
    for flags in (("--seed", "1"), ("--weights", "raw"), ("--steps", "3"), ("--audio", str(talking))):
        assert np.abs(make("other", *flags) - base).max() > 2, flags


def test_guidance_flags():
    def config(*flags: str) -> GuidanceConfig:
        options = generate._parser().parse_args(["--run", "r", "--image", "i", "--out", "o", *flags])
        return trained_run.sampling_config(QUICK, options).guidance

    assert config() == GuidanceConfig(scale=2.0)
    assert not config("--guidance-scale", "1").enabled
    changed = config("--guidance-scale", "5", "--guidance-final-scale", "2", "--guidance-curve", "cosine")
    assert changed == GuidanceConfig(scale=5.0, final_scale=2.0, curve="cosine")
    assert QUICK.guidance == GuidanceConfig(scale=2.0), "the run's config must stay as it was"


def test_a_picture_goes_where_encode_would_put_it_and_is_cropped_only_into_another_shape():
    assert pictures_omnihuman.fit_size(480, 640, 96 * 80) == (80, 96)
    stretched = pictures_omnihuman.place(480, 640, (80, 96))
    assert (stretched.scale_y, stretched.scale_x, stretched.top, stretched.left) == (80 / 480, 96 / 640, 0, 0)
    cropped = pictures_omnihuman.place(480, 640, (96, 96))
    assert cropped.scale_y == cropped.scale_x == 96 / 480 and (cropped.top, cropped.left) == (0, (128 - 96) / 2)


def test_reference_and_pose_are_laid_over_the_frame_alike(tmp_path, tiny, pose):
    """A dot in the picture and a keypoint on it end up at the same place, cropped or stretched."""
    picture = np.full((64, 192, 3), 20, np.uint8)
    picture[28:36, 92:100] = 250  # the centre
    media_omnihuman.write_video(tmp_path / "wide.mp4", picture[None])
    reference = driving.read_reference(tmp_path / "wide.mp4", (32, 48))
    assert reference.shape == (1, 32, 48, 3) and reference.dtype == np.float32
    bright = np.argwhere(reference[0].mean(-1) > 0).mean(0) + 0.5
    np.testing.assert_allclose(bright, [16, 24], atol=1)
    # clip0 is 64 x 96 with every keypoint at its centre.
    keypoints = driving.read_pose(pose, (32, 48), tiny_run.KEYPOINT_NAMES)
    np.testing.assert_allclose(keypoints[..., :2] * 16, np.broadcast_to([24, 16], keypoints[..., :2].shape), atol=1e-4)
    tall = driving.read_pose(pose, (96, 48), tiny_run.KEYPOINT_NAMES)
    np.testing.assert_allclose(tall[0, 0], [24 / 16, 48 / 16, 0.9], atol=1e-4)


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    from omnihuman_jax.evaluation.sheet import write_png

    write_png(tmp_path / "a.png", picture)
    np.testing.assert_allclose(driving.read_reference(tmp_path / "a.png", (32, 48))[0], to_float(picture), atol=1e-6)


def test_wrong_input_is_one_line_and_leaves_nothing_behind(tiny, talking, tmp_path, pose):
    silent, none = tmp_path / "silent.mp4", str(tmp_path / "none.png")
    media_omnihuman.write_video(silent, np.full((6, 64, 64, 3), 90, np.uint8))
    out, other = tmp_path / "out", tmp_path / "bert"
    tiny_run.write_bert(other, seed=9)
    cases = {
        ("--image", none): f"--image {none}: no such file",
        ("--audio", none): f"--audio {none}: no such file",
        ("--pose", none): f"--pose {none}: no such file",
        (
            "--audio",
            str(talking),
            "--seconds",
            "3",
        ): "shorter than --seconds 3: give a longer file, or --seconds 1.20",
        ("--pose", str(pose), "--seconds", "9"): "lasts 1.60 s, shorter than --seconds 9",
        ("--audio", str(silent)): "has no audio track",
        ("--pose", str(silent)): "no person found in any frame",
        ("--solver", "ab2", "--guidance-text-scale", "-1"): "must be finite and >= 0",
        ("--seconds", "0"): "--seconds must be > 0",
        ("--size", "33x48"): "multiples of 16",
        ("--segment-frames", "24"): "1 \\+ 4n frames, not 24",
        ("--steps", "0"): "num_steps must be >= 1",
        ("--guidance-curve", "linear", "--guidance-scale", "-1"): "must be finite and >= 0",
        ("--text-encoder", str(tmp_path / "nobert"), "--text", "a"): "nobert",
        ("--text-encoder", str(other), "--text", "a"): "not the text encoder that the run was trained with",
    }
    for flags, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            generate.main(arguments(tiny, talking, out / "o.mp4", *flags))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        generate.main(arguments(tiny, talking, out / "o.avi"))
    assert not out.exists() or not list(out.iterdir())


def test_a_model_without_an_input_says_so(tiny, run, talking, pose):
    model = dataclasses.replace(run.config.model, audio=None, pose=None)
    bare = dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))
    with pytest.raises(ValueError, match=r"has no audio adapter.*leave out --audio"):
        trained_range.check_model(bare, driving.Request(image=talking, audio=talking).active)
    with pytest.raises(ValueError, match=r"has no pose guider.*leave out --pose"):
        trained_range.check_model(bare, driving.Request(image=talking, pose=pose).active)
    early = dataclasses.replace(run, step=1)
    assert (
        "has not been trained on audio yet"
        in trained_range.check_model(early, driving.Request(image=talking, audio=talking).active)[0]
    )
    assert (
        trained_range.check_model(run, driving.Request(image=talking, audio=talking, pose=pose, text="a").active) == []
    )


def test_without_the_dataset_size_and_segment_are_asked_for(run, talking, tmp_path):
    away = dataclasses.replace(run, dataset=tmp_path)
    with pytest.raises(FileNotFoundError, match="give --segment-frames, or the dataset"):
        driving.segment_frames_of(away, QUICK)
    with pytest.raises(FileNotFoundError, match="give --size, or the dataset"):
        driving.read_signals(away, driving.Request(image=talking), 9)
    assert driving.segment_frames_of(away, dataclasses.replace(QUICK, segment_frames=13)) == 13
    assert driving.read_signals(away, driving.Request(image=talking, size=(16, 32)), 9).frames == 9


def write_manifest(folder, talking, pose) -> list[dict]:
    """Six good lines of two shapes, paths relative and absolute, and four bad ones."""
    shutil.copy(talking, folder / "talking.mp4")
    shared = {"image": "talking.mp4", "audio": "talking.mp4", "size": "32x48", "seconds": 0.36}
    rows = [{"name": f"heard{i}", "seed": i, **shared} for i in range(3)]
    rows += [
        {"name": "posed", "pose": str(pose), "seconds": 0.36, "size": "32x48"},
        {"name": "told", "text": "a man", "size": "32x48", "seconds": 0.2},
        {"name": "told_again", "text": "a man speaks", "size": "32x48", "seconds": 0.2},
    ]
    bad = [{"name": "gone", "audio": "none.wav"}, {"name": "../out", "text": "a"}, {"name": "odd", "txt": "a"}]
    lines = [json.dumps(row) for row in (*rows, *bad)] + ["{not json"]
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n\n")
    return rows


@pytest.mark.slow
def test_a_manifest_makes_what_single_calls_make(tiny, run, talking, pose, tmp_path, capsys):
    rows = write_manifest(tmp_path, talking, pose)
    out = tmp_path / "made"
    flags = ["--run", str(tiny.run), "--manifest", str(tmp_path / "jobs.jsonl"), "--out", str(out), "--steps", "2"]
    assert generate.main(flags) == 1, "some lines could not be made"
    printed = capsys.readouterr()
    # Three of one shape are one program; the pose alone is unguided, the prompts are shorter.
    assert "6 made, 0 kept, 4 failed; 3 program(s) compiled" in printed.out
    for line, says in ((7, "none.wav: no such file"), (8, "letters, digits"), (9, "unknown txt"), (10, "no JSON")):
        assert any(text.startswith(f"line {line} ") and says in text for text in printed.err.splitlines()), says
    report = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    assert [row["status"] for row in report] == ["made"] * 6 + ["failed"] * 4 and report[0]["frames"] == 9

    single = driving.Request(image=talking, audio=talking, seconds=0.36, size=(32, 48), seed=2)
    config = dataclasses.replace(run.config.sampling, num_steps=2)
    generate.generate(run, single, tmp_path / "single.mp4", config=config)
    np.testing.assert_array_equal(
        media_omnihuman.read_video(tmp_path / "single.mp4"), media_omnihuman.read_video(out / "heard2.mp4")
    )

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    (out / "heard1.mp4").unlink()
    changed = json.dumps({**rows[0], "seed": 9})
    text = (tmp_path / "jobs.jsonl").read_text().splitlines()
    (tmp_path / "jobs.jsonl").write_text("\n".join([changed, *text[1:6]]) + "\n")
    assert generate.main(flags) == 0
    assert "2 made, 4 kept, 0 failed" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert {path.stem for path in after if after[path] != before[path]} == {"heard0", "heard1"}


def test_a_manifest_that_is_none_is_one_line(tiny, talking, tmp_path):
    def refused(*flags: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            generate.main(["--run", str(tiny.run), "--out", str(tmp_path / "o"), *flags])
        return str(caught.value)

    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no such file" in refused("--manifest", str(tmp_path / "none.jsonl"))
    assert "no line in it" in refused("--manifest", str(tmp_path / "empty.jsonl"))
    assert "--text: of one video" in refused("--manifest", str(tmp_path / "empty.jsonl"), "--text", "a")
    assert "--worker shares the lines of --manifest" in refused("--text", "a", "--worker", "0/2")


def test_workers_share_a_manifest(tiny, tmp_path, capsys):
    """Each line is made by one of them, and reported by that one."""
    lines = [{"name": f"told{i}", "text": "a man", "size": "32x48", "seconds": 0.2, "seed": i} for i in range(3)]
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    flags = ["--run", str(tiny.run), "--manifest", str(tmp_path / "jobs.jsonl"), "--steps", "1"]
    for index in range(2):
        assert generate.main([*flags, "--out", str(tmp_path / "made"), f"--worker={index}/2"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("2 made, 0 kept, 0 failed; 1 program(s) compiled")
    reports = {path.name: path.read_text() for path in (tmp_path / "made").glob("report*")}
    assert [json.loads(line)["name"] for line in reports["report-000-of-002.jsonl"].splitlines()] == ["told0", "told2"]
    assert [json.loads(line)["name"] for line in reports["report-001-of-002.jsonl"].splitlines()] == ["told1"]
    assert len(list((tmp_path / "made").glob("*.mp4"))) == 3 and len(reports) == 2
    assert generate.main([*flags, "--out", str(tmp_path / "none"), "--worker=7/8"]) == 0
    assert (tmp_path / "none" / "report-007-of-008.jsonl").read_text() == ""


def test_segments_can_be_watched_as_they_are_made(run, talking, tmp_path):
    made = generate.generate(
        run,
        driving.Request(image=talking, audio=talking, size=(32, 48), seconds=0.7),
        tmp_path / "out.mp4",
        config=QUICK,
        previews=tmp_path / "previews",
    )
    parts = sorted((tmp_path / "previews").iterdir())
    assert [path.name for path in parts] == [f"from_frame_{n:06d}.mp4" for n in (0, 9, 13, 17)]
    lengths = [media_omnihuman.probe(path).frames for path in parts]
    assert sum(lengths) == made.frames == 18 and all(media_omnihuman.probe(path).has_audio for path in parts)
    whole = media_omnihuman.read_video(tmp_path / "out.mp4").astype(int)
    shown = np.concatenate([media_omnihuman.read_video(path) for path in parts]).astype(int)
    assert np.abs(whole - shown).mean() < 6, "the same pictures, each file encoded by itself"
