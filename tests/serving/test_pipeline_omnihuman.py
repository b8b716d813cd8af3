"""The exported folder's pipeline gives what `omnihuman generate` gives: the same files and seed in, the same video
out.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from omnihuman_jax.commands import export, generate
from omnihuman_jax.diffusion.solver import SamplingConfig
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.interop import export_readme
from omnihuman_jax.interop.export_folder import MODULES
from omnihuman_jax.sampling import driving, trained_run
from omnihuman_jax.sampling.sampler import Sampler, needs_guidance, shape_for
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.folders_omnihuman import check_weights
from omnihuman_jax.serving.guidance_omnihuman import GuidanceConfig
from omnihuman_jax.serving.windows_omnihuman import segment_schedule

TOLERANCE = 1e-4
TEN = SamplingConfig(num_steps=10, segment_frames=9, guidance=GuidanceConfig(scale=4.0))
SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "model"
    export.export_run(tiny.run, out)
    return out


@pytest.fixture(scope="module")
def serving(folder):
    """The pipeline's module, imported as a user does: from the folder."""
    names = [name.removesuffix(".py") for name in MODULES]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        import pipeline_omnihuman

        assert Path(pipeline_omnihuman.__file__).parent == folder
        yield pipeline_omnihuman
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture(scope="module")
def pipeline(serving, folder):
    return serving.OmniHumanPipeline.from_pretrained(folder)


def test_the_folder_knows_its_run(folder, tiny, run):
    part = json.loads((folder / "config.json").read_text())["serving"]
    assert (
        part["codec"] == "dct"
        and part["speech_layers"] == list(run.spec.speech_layers)
        and part["margin"] == run.spec.margin
    )
    assert (part["segment_frames"], part["num_steps"]) == (9, run.config.sampling.num_steps)
    assert part["text_sha256"].keys() & part["speech_sha256"].keys() >= {"model.safetensors", "config.json"}
    assert "tokenizer.json" in part["text_sha256"]
    text = (folder / "README.md").read_text()
    assert "pipeline_omnihuman.py --image face.png --audio voice.wav --text" in text
    sizes = run.config.model
    silent = export_readme.pipeline_section(dataclasses.replace(sizes, audio=None))
    assert "--audio" not in silent and "--image face.png --pose pose.npz --text" in silent
    assert "--image face.png --text" in export_readme.pipeline_section(
        dataclasses.replace(sizes, audio=None, pose=None)
    )
    assert (folder / "media_omnihuman.py").read_text() == Path(media_omnihuman.__file__).read_text()


def test_an_image_without_a_size_gets_generates(pipeline, run, talking):
    latents = driving.read_signals(run, driving.Request(image=talking), TEN.segment_frames).reference_HWC
    assert pipeline._size(talking, None, None) == (8 * latents.shape[0], 8 * latents.shape[1])


def test_the_codec_is_the_trainers(pipeline, run, measured):
    video = np.random.default_rng(0).uniform(-1, 1, (9, 32, 48, 3)).astype(np.float32)
    ours = trained_run.encode_pictures(run, video)
    theirs = pipeline.encode(video)
    measured("dct codec, PyTorch against JAX: latents", np.abs(theirs - ours).max() / np.abs(ours).max(), 3e-6)
    frames = trained_run.decode_pictures(run, ours)
    measured("dct codec, PyTorch against JAX: frames", np.abs(pipeline.decode(ours) - frames).max(), 3e-6)


@pytest.mark.slow
def test_latents_of_a_ten_step_loop_from_files(pipeline, serving, run, tiny, talking, measured):
    """Image, sound, pose and prompt from files; the second segment starts from the first one's motion frames."""
    pose = tiny.clips / "poses" / "clip0.npz"
    request = driving.Request(
        image=talking, audio=talking, pose=pose, text="a man speaks", seconds=0.5, size=SIZE, seed=5
    )
    ours = driving.read_signals(run, request, TEN.segment_frames)
    theirs = pipeline.read_signals(talking, talking, pose, "a man speaks", 0.5, SIZE, TEN.segment_frames)
    assert (theirs.frames, theirs.has_text) == (ours.frames, True)
    for name, limit in (
        ("reference_HWC", 1e-5),
        ("text_SE", 1e-5),
        ("pooled_E", 1e-5),
        ("audio_TE", 2e-3),
        ("keypoints_TJ3", 1e-6),
    ):
        expected = getattr(ours, name)
        error = np.abs(getattr(theirs, name) - expected).max() / np.abs(expected).max()
        measured(f"{name.split('_')[0]} from a file, pipeline against generate", error, limit)

    segments = segment_schedule(ours.frames, TEN.segment_frames)
    first = generate.window_of(run, ours, segments[0], None)
    sampler = Sampler(
        run,
        TEN,
        shape_for(run, [first]),
        batch=1,
        branches=needs_guidance(TEN.guidance, [first]),
    )
    motion = None
    # What the encoders' rounding does is measured above; here both loops start from the same signals.
    shared = serving.Signals(
        frames=ours.frames, latent_shape=ours.latent_shape, reference_HWC=ours.reference_HWC,
        text_SE=ours.text_SE, pooled_E=ours.pooled_E,
        has_text=True,
        audio_TE=ours.audio_TE, keypoints_TJ3=ours.keypoints_TJ3, wave=ours.wave,
    )  # fmt: skip
    guidance = serving.GuidanceConfig(scale=4.0)
    for segment in segments[:2]:
        (expected,) = sampler([generate.window_of(run, ours, segment, motion)], 5)
        found = pipeline.sample_segment(shared, segment, motion, seed=5, num_steps=10, guidance=guidance)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        measured("latents of a segment, 10 guided steps, pipeline against generate on the same seed", error, TOLERANCE)
        motion = trained_run.decode_pictures(run, expected)[-5:]


SCRIPT = """
import runpy, sys
for name in ("jax", "jaxlib", "flax", "orbax", "omnihuman_jax", "data_pipelines"):
    sys.modules[name] = None  # importing any of these now fails
sys.argv = ["pipeline_omnihuman.py", *{arguments!r}]
runpy.run_path("pipeline_omnihuman.py", run_name="__main__")
"""


def test_the_command_makes_the_video_of_generate_without_jax(folder, run, tiny, talking, tmp_path):
    """A process in the folder, jax and this package blocked: a long video with sound, frame for frame."""
    flags = [
        "--image",
        str(talking),
        "--audio",
        str(talking),
        "--text",
        "a man speaks",
        "--size",
        "32x48",
        "--seed",
        "2",
    ]
    flags += ["--seconds", "0.6", "--steps", "10", "--guidance-scale", "4", "--segment-frames", "9"]
    flags += ["--pose", str(tiny.clips / "poses" / "clip0.npz"), "--out", str(tmp_path / "torch.mp4")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT).format(arguments=flags)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "15 frames (0.60 s)" in done.stderr
    pose = tiny.clips / "poses" / "clip0.npz"
    request = driving.Request(
        image=talking, audio=talking, pose=pose, text="a man speaks", seconds=0.6, size=SIZE, seed=2
    )
    made = generate.generate(run, request, tmp_path / "jax.mp4", config=TEN)
    assert made.segments > 1
    ours, theirs = (media_omnihuman.read_video(tmp_path / f"{name}.mp4").astype(int) for name in ("jax", "torch"))
    assert ours.shape == theirs.shape == (15, *SIZE, 3)
    # A few pixels round the other way, now and then one; H.264 then keeps something else of the block around it.
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.1 and (difference > 4).mean() < 0.005
    assert media_omnihuman.probe(tmp_path / "torch.mp4").has_audio
    np.testing.assert_array_equal(*(media_omnihuman.read_audio(tmp_path / f"{name}.mp4") for name in ("jax", "torch")))


def test_a_prompt_is_cut_where_the_captions_of_the_data_were(serving, folder, tiny, tmp_path):
    short = shutil.copytree(folder, tmp_path / "short")
    values = json.loads((short / "config.json").read_text())
    assert values["serving"]["max_text_tokens"] == 128
    values["serving"]["max_text_tokens"] = 5
    (short / "config.json").write_text(json.dumps(values))
    tokens, _ = serving.OmniHumanPipeline.from_pretrained(short)._text_features("a man speaks a man speaks")
    expected, _ = load_text_encoder(tiny.text).encode(["a man speaks a man speaks"], 5)
    assert len(tokens) == 5
    np.testing.assert_allclose(tokens, expected[0], atol=1e-4)


@pytest.mark.slow
def test_without_an_image_and_with_the_other_solver(folder, serving, run, tiny, talking, tmp_path):
    """No reference, the pose's shape; text and audio guided apart, second order: the same video again."""
    pose = tiny.clips / "poses" / "clip0.npz"
    request = driving.Request(audio=talking, pose=pose, text="a man speaks", seconds=0.36, seed=4)
    config = SamplingConfig(
        num_steps=5, segment_frames=9, guidance=GuidanceConfig(scale=4.0, text_scale=2.0), solver="ab2"
    )
    made = generate.generate(run, request, tmp_path / "jax.mp4", config=config)
    assert made.active.label == "text+audio+pose"
    flags = ["--model", str(folder), "--audio", str(talking), "--pose", str(pose), "--text", "a man speaks"]
    flags += ["--seconds", "0.36", "--seed", "4", "--steps", "5", "--solver", "ab2", "--guidance-scale", "4"]
    flags += ["--guidance-text-scale", "2", "--segment-frames", "9", "--out", str(tmp_path / "torch.mp4")]
    assert serving.main(flags) == 0
    ours, theirs = (media_omnihuman.read_video(tmp_path / f"{name}.mp4").astype(int) for name in ("jax", "torch"))
    assert ours.shape == theirs.shape == (9, *SIZE, 3)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.1 and (difference > 4).mean() < 0.005
    euler = dataclasses.replace(config, solver="euler")
    generate.generate(run, request, tmp_path / "euler.mp4", config=euler)
    assert np.abs(media_omnihuman.read_video(tmp_path / "euler.mp4").astype(int) - ours).max() > 8


def test_nothing_to_go_by_is_one_line(serving, folder, tmp_path, capsys):
    for flags, says in (([], "nothing drives the video"), (["--text", "a man"], "")):
        code = serving.main(["--model", str(folder), "--steps", "1", "--out", str(tmp_path / "o.mp4"), *flags])
        assert code == (2 if says else 0) and says in capsys.readouterr().err
    assert media_omnihuman.probe(tmp_path / "o.mp4").height == 32, "the size of most windows"


def test_wrong_input_is_one_line(serving, folder, tiny, talking, tmp_path, capsys):
    def says(*flags: str, image: str = str(talking)) -> str:
        assert serving.main(["--model", str(folder), "--image", image, "--out", str(tmp_path / "o.mp4"), *flags]) == 2
        out = capsys.readouterr().err.strip()
        assert out.startswith("pipeline_omnihuman: ") and "\n" not in out
        return out

    assert "none.png: no such file" in says(image=str(tmp_path / "none.png"))
    assert "multiples of 16" in says("--size", "33x48")
    assert "shorter than --seconds 9" in says("--audio", str(talking), "--seconds", "9")
    assert "1 + 4n frames, not 10" in says("--segment-frames", "10")
    assert "is not the text encoder" in says("--text", "a", "--text-encoder", str(tiny.speech))
    assert "at least 1 step" in says("--steps", "0")
    assert "give keypoints (.npz)" in says("--pose", str(talking))
    assert "finite and >= 0" in says("--guidance-scale", "-1", "--text", "a")
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize("damage", ["missing shard", "old file", "cut", "other's prompt", "nan", "no config"])
def test_a_half_copied_folder_is_one_line(damage, serving, folder, tiny, talking, tmp_path, capsys):
    out = tmp_path / "model"
    if damage in ("missing shard", "old file"):
        export.export_run(tiny.run, out, max_shard_bytes=100_000)
    else:
        shutil.copytree(folder, out)
    prompt = out / "empty_prompt.safetensors"
    if damage == "missing shard":
        named = sorted(out.glob("model-*.safetensors"))[1]
        named.unlink()
    elif damage == "old file":
        named = out / "model.safetensors"
        shutil.copy(folder / named.name, named)
    elif damage == "cut":
        named = out / "codec.safetensors"
        named.write_bytes(named.read_bytes()[:-1])
    elif damage == "no config":
        named = out / "config.json"
        named.write_text("{")
    else:
        named, arrays = prompt, load_file(prompt)
        arrays["pooled_E"][0] = np.nan if damage == "nan" else 0
        mark = json.loads((out / "config.json").read_text())["export_id"] if damage == "nan" else "another"
        save_file(arrays, prompt, {"export": mark})
    argv = ["--model", str(out), "--image", str(talking), "--text", "a", "--out", str(tmp_path / "x.mp4")]
    assert serving.main(argv) == 2
    printed = capsys.readouterr().err
    assert str(named) in printed and printed.count("\n") == 1 and not (tmp_path / "x.mp4").exists()


def test_a_folder_without_the_runs_data_says_so(folder, serving, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    values = json.loads((bare / "config.json").read_text())
    del values["serving"]
    (bare / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="no part 'serving'"):
        serving.OmniHumanPipeline.from_pretrained(bare)


def test_large_text_encoders_are_those_of_encode(serving, tmp_path):
    import encoders_omnihuman

    from tests.encoders import tiny_transformers

    folder = tiny_transformers.write_t5(tmp_path / "wan", "umt5", inside=True)
    ours = load_text_encoder(folder)
    check_weights("text encoder", folder, ours.sha256)
    theirs = encoders_omnihuman.load_text_encoder(folder, torch.device("cpu"))
    tokens, pooled = theirs.encode("a man")
    np.testing.assert_array_equal(tokens, ours.encode(["a man"]).tokens[0])
    np.testing.assert_array_equal(theirs.encode("a man", 2)[0], ours.encode(["a man"], 2).tokens[0])
    assert pooled.shape == (0,)
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer/added_tokens\.json was not there then"):
        check_weights("text encoder", folder, ours.sha256)
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"text_encoder/model\.safetensors is another file"):
        check_weights("text encoder", folder, ours.sha256)


@pytest.mark.slow
def test_wav2vec2_and_long_sound_are_encoded_as_in_training(pipeline, tmp_path, measured):
    """Both norms; longer than a chunk of either network, so that the bounds are compared too."""
    import encoders_omnihuman

    from omnihuman_jax.encoders.speech import load_speech_encoder
    from tests.encoders import tiny_networks

    frames = 25 * 34
    wave = tiny_networks.wave(34.0) + 0.01 * np.random.default_rng(3).standard_normal(34 * 16_000).astype(np.float32)
    for norm in ("group", "layer"):
        network = tiny_networks.write_wav2vec2(tmp_path / norm, norm=norm)
        ours = load_speech_encoder(network, layers=(0, 2)).features(wave, frames)
        theirs = encoders_omnihuman.load_speech_encoder(network, (0, 2), torch.device("cpu")).features(wave, frames)
        measured(
            "wav2vec 2.0 features of 34 s, pipeline against encode",
            np.abs(ours - theirs).max() / np.abs(ours).max(),
            2e-4,
        )
