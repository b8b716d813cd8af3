"""encode from files to files: two drawn clips and an image, tiny networks with the real ones' code, the real codec."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from data_pipelines.curate import footage, stage_parts
from data_pipelines.curate.clip_sets import load_landmarks, read_clips
from data_pipelines.curate.clips import Clip, Landmarks
from data_pipelines.curate.known_clips import write_clips
from data_pipelines.encode import clip_encoder, dataset_finish, decode_ahead, encoded_shards, kept_dataset
from data_pipelines.encode.clip_encoder import WindowConfig
from data_pipelines.encode.dead_letters import DeadLetters, read_letters
from data_pipelines.encode.encode import EncodeConfig, EncodeShare, encode, main, print_summary
from omnihuman_jax.codecs.codec import load_codec
from omnihuman_jax.codecs.dct import DctCodec
from omnihuman_jax.conditions import Condition, ConditionSet
from omnihuman_jax.data.catalog import Catalog
from omnihuman_jax.data.keypoints import NUM_KEYPOINTS
from omnihuman_jax.data.record_source import open_records
from omnihuman_jax.data.records import features, to_example
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.serving import media_omnihuman
from tests.codecs import vae_folders
from tests.encoders import tiny_networks

MARGIN = 3
ALL = ("text", "reference", "audio", "pose")


def _pictures(count: int, height: int, width: int) -> np.ndarray:
    """A bright disc that wanders over a gradient: every frame is another."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    frames = []
    for t in range(count):
        cy, cx = height * (0.5 + 0.3 * np.sin(t / 5)), width * (0.5 + 0.3 * np.cos(t / 7))
        disc = 120 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (height / 6) ** 2))
        frames.append(np.stack([40 + disc + x / width * 60, 60 + disc, 90 + y / height * 60], -1))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def _clip(folder, name: str, start: int, end: int, size: tuple[int, int], eligible: tuple[str, ...], **fields):
    """A clip of a video in `folder`/videos, and the landmarks of a person who wanders to the right."""
    count = end - start
    points = np.zeros((count, NUM_KEYPOINTS, 3), np.float32)
    points[:, 0] = np.stack([np.arange(start, end) * 2.0, np.full(count, 24.0), np.ones(count)], -1)
    boxes = np.zeros((count, 4), np.float32)
    landmarks = Landmarks(
        keypoints_TJ3=points,
        lips_TK2=np.zeros((count, 40, 2), np.float32),
        mouth_box_T4=boxes,
        face_box_T4=boxes,
        aperture_T=np.zeros(count, np.float32),
        face_T=np.ones(count, bool),
        faces_T=np.ones(count, np.int32),
    )
    row = {
        "clip_id": f"{name.split('.')[0]}-{start:03d}",
        "video": name,
        "path": f"videos/{name}",
        "sha256": hashlib.sha256((folder / "videos" / name).read_bytes()).hexdigest(),
        "start_frame": start,
        "end_frame": end,
        "fps": 25,
        "height": size[0],
        "width": size[1],
        "has_audio": "audio" in eligible,
        "caption": "a man talks to the camera .",
        "caption_source": "sidecar",
        "scores": {},
        "eligible": eligible,
        "reasons": {},
    }
    return Clip(**(row | fields)), landmarks


def _copy(clips_dir, folder):
    """The same clips in another place, with their landmarks, to write anew."""
    shutil.copytree(clips_dir / "videos", folder / "videos")
    return [(clip, load_landmarks(clips_dir, clip)) for clip in read_clips(clips_dir)]


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory):
    """talk: 60 frames with sound, clips 4..40 (all conditions) and 40..57 (as long as a window); still: one picture."""
    folder = tmp_path_factory.mktemp("curated")
    (folder / "videos").mkdir()
    media_omnihuman.write_video(folder / "videos" / "talk.mp4", _pictures(60, 96, 128), audio=tiny_networks.wave(2.4))
    media_omnihuman.write_video(folder / "videos" / "still.mp4", _pictures(1, 64, 64))
    clips = [
        _clip(folder, "talk.mp4", 4, 40, (96, 128), ALL),
        _clip(folder, "talk.mp4", 40, 57, (96, 128), ALL),
        _clip(folder, "still.mp4", 0, 1, (64, 64), ("text", "reference", "pose"), caption=""),
    ]
    write_clips(folder, clips)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return tiny_networks.write_bert(folder / "bert"), tiny_networks.write_whisper(folder / "whisper")


@pytest.fixture(scope="module")
def config(networks):
    windows = WindowConfig(area=64 * 48, frames=(1, 5, 17), stride=6, image_stride=12, references=3, margin=MARGIN)
    text, speech = map(str, networks)
    return EncodeConfig(
        text_encoder=text,
        speech_encoder=speech,
        speech_layers=(0, 2),
        windows=windows,
        shard_mib=0.5,
        max_text_tokens=61,
    )


@pytest.fixture(scope="module")
def dataset(clips_dir, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "dataset"
    summary = encode(clips_dir, out, config, Console(quiet=True))
    return out, summary


@pytest.fixture(scope="module")
def catalog(dataset):
    return Catalog.load(dataset[0])


@pytest.fixture(scope="module")
def records(dataset):
    source = open_records(dataset[0])
    return [source[index] for index in range(len(source))]


def _frames(clips_dir, clip_start: int, clip_end: int) -> np.ndarray:
    frames = media_omnihuman.read_video(clips_dir / "videos" / "talk.mp4", size=(48, 64), start_s=clip_start / 25)
    return frames[: clip_end - clip_start].astype(np.float32) / 127.5 - 1


def test_every_window_is_there_once_in_shards_of_the_asked_size(dataset, catalog):
    out, summary = dataset
    starts = {}
    for clip, start, frames in zip(catalog.clip_id, catalog.start_frame.tolist(), catalog.frames.tolist()):
        starts.setdefault((clip, frames), []).append(start)
    assert starts[("talk-004", 17)] == [0, 6, 12, 18, 19] and starts[("talk-040", 17)] == [0]
    assert starts[("still-000", 1)] == [0] and ("still-000", 5) not in starts
    assert len(catalog) == len(open_records(out)) == summary["windows"] == len(set(catalog.window_id))
    shards = sorted(file.name for file in out.glob("*.array_record*"))
    assert len(shards) == 2 and shards[0].endswith("00000-of-00002")  # the first clip fills one, the others share one


def test_dataset_reads_back_through_tfds_bit_for_bit(dataset, clips_dir, config, records, monkeypatch):
    """What tfds decodes is what the clip encoder made, every bit of every array."""
    out, _ = dataset
    made = []
    original = clip_encoder.ClipEncoder.windows
    monkeypatch.setattr(
        clip_encoder.ClipEncoder,
        "windows",
        lambda self, *arguments: (made.append(window) or window for window in original(self, *arguments)),
    )
    encode(clips_dir, out.parent / "again", config, Console(quiet=True))
    read, spec = open_records(out), open_records(out).spec
    examples = tfds.builder_from_directory(str(out)).as_data_source(split="train")
    assert len(made) == len(examples)
    for row, (window, example) in enumerate(zip(made, examples, strict=True)):
        pairs = {name: (mine, example[name]) for name, mine in to_example(window.record).items()}
        pairs |= {
            field.name: (getattr(window.record, field.name), getattr(read[row], field.name))
            for field in dataclasses.fields(window.record)
        }
        for name, (mine, stored) in pairs.items():
            if isinstance(mine, np.ndarray):
                assert mine.dtype == stored.dtype and mine.shape == stored.shape, name
                assert mine.tobytes() == stored.tobytes(), name
            else:
                assert mine == (stored.decode() if isinstance(stored, bytes) else stored), name
    # And the files of both runs are the same files.
    for file in sorted(out.glob("*.array_record*")):
        assert file.read_bytes() == (out.parent / "again" / file.name).read_bytes()
    assert features(spec).keys() == examples[0].keys()


def test_latents_are_those_of_the_windows_own_frames(clips_dir, catalog, records):
    frames = _frames(clips_dir, 4, 40)
    codec = DctCodec()
    mine = [(record, start) for record, start in zip(records, catalog.start_frame) if record.clip_id == "talk-004"]
    for record, start in mine:
        latents = np.asarray(codec.encode(frames[start : start + record.frames]))
        np.testing.assert_allclose(record.latents_FHWC, latents, rtol=1e-3, atol=2e-3)


def test_references_are_frames_outside_of_the_window_as_images(clips_dir, catalog, records):
    images = np.asarray(DctCodec().encode(_frames(clips_dir, 4, 40)[:, None]))[:, 0]
    for record, start in zip(records, catalog.start_frame.tolist()):
        if record.clip_id != "talk-004":
            continue
        assert len(record.references_RHWC) == 3
        for reference in record.references_RHWC.astype(np.float32):
            nearest = int(np.abs(images - reference).mean(axis=(1, 2, 3)).argmin())
            assert np.abs(images[nearest] - reference).max() < 0.02
            assert not start <= nearest < start + record.frames


def test_a_window_as_long_as_its_clip_is_not_eligible_for_reference(catalog, records):
    whole = next(record for record in records if record.window_id == "talk-040-f00000-n017")
    assert len(whole.references_RHWC) == 0
    assert ConditionSet(whole.eligible).label == "text+audio+pose"


def test_single_frames_are_for_text_and_reference_only(records):
    images = [record for record in records if record.frames == 1]
    assert {ConditionSet(record.eligible).label for record in images if record.clip_id != "still-000"} == {
        "text+reference"
    }
    assert all(not len(record.audio_TE) and not len(record.keypoints_TJ3) for record in images)


def test_an_image_is_a_clip_of_one_frame(records):
    """Nothing outside of it and no caption: it trains with every condition absent."""
    (image,) = [record for record in records if record.clip_id == "still-000"]
    assert image.latents_FHWC.shape == (1, 6, 6, 48) and image.eligible == 0
    assert len(image.text_SE) == 2


def test_speech_features_have_real_margins(clips_dir, config, catalog, records):
    """Rows are those of the clip's features; beyond the clip, those of the video's sound; beyond the video, none."""
    sound = media_omnihuman.read_audio(clips_dir / "videos" / "talk.mp4")
    encoder = load_speech_encoder(config.speech_encoder, (0, 2))
    first = {"talk-004": 4 - MARGIN, "talk-040": 40 - MARGIN}
    rows = {"talk-004": 36 + 2 * MARGIN, "talk-040": 17 + 2 * MARGIN}
    whole = {c: encoder.features(sound[first[c] * 640 : (first[c] + rows[c]) * 640], rows[c]) for c in first}
    checked = 0
    for record, start in zip(records, catalog.start_frame.tolist()):
        if record.frames == 1:
            continue
        count = record.frames + 2 * MARGIN
        assert record.audio_TE.shape == (count, 32) and record.audio_valid_T.shape == (count,)
        assert record.audio_valid_T.all()  # 4 frames before the first clip and 3 after the last have sound of their own
        np.testing.assert_allclose(record.audio_TE, whole[record.clip_id][start : start + count], atol=2e-3)
        checked += 1
    assert checked > 10


def test_margins_beyond_the_video_are_marked(clips_dir, config, tmp_path):
    """The same video as one clip from its first to its last frame: there is nothing before and after it."""
    folder = tmp_path / "curated"
    shutil.copytree(clips_dir / "videos", folder / "videos")
    write_clips(folder, [_clip(folder, "talk.mp4", 0, 60, (96, 128), ALL)])
    encode(folder, tmp_path / "dataset", config, Console(quiet=True))
    catalog, source = Catalog.load(tmp_path / "dataset"), open_records(tmp_path / "dataset")
    first = source[int(np.flatnonzero((catalog.frames == 17) & (catalog.start_frame == 0))[0])]
    last = source[int(np.flatnonzero((catalog.frames == 17) & (catalog.start_frame == 43))[0])]
    for rows, valid in ((first.audio_TE, first.audio_valid_T), (first.keypoints_TJ3, first.keypoints_valid_T)):
        assert valid.tolist() == [False] * 3 + [True] * 20 and not rows[:3].any()
    for rows, valid in ((last.audio_TE, last.audio_valid_T), (last.keypoints_TJ3, last.keypoints_valid_T)):
        assert valid.tolist() == [True] * 20 + [False] * 3 and not rows[20:].any()
    assert ConditionSet(first.eligible).label == "text+reference+audio+pose"


def test_keypoints_are_in_token_units_and_marked_outside_of_the_clip(catalog, records):
    record, start = next(
        (r, s)
        for r, s in zip(records, catalog.start_frame.tolist())
        if r.clip_id == "talk-004" and r.frames == 5 and s == 6
    )
    frames = np.arange(4 + start - MARGIN, 4 + start + 5 + MARGIN)
    np.testing.assert_allclose(record.keypoints_TJ3[:, 0, 0], frames * 2.0 * 64 / 128 / 16, rtol=2e-3)
    np.testing.assert_allclose(record.keypoints_TJ3[:, 0, 1:], [[24 * 48 / 96 / 16, 1]] * len(frames), rtol=2e-3)
    at_start = next(
        r for r, s in zip(records, catalog.start_frame.tolist()) if r.clip_id == "talk-004" and r.frames == 5 and s == 0
    )
    assert at_start.keypoints_valid_T.tolist() == [False] * 3 + [True] * 8


def test_a_stretch_without_a_person_is_not_eligible_for_pose(clips_dir, config, tmp_path):
    folder = tmp_path / "curated"
    shutil.copytree(clips_dir / "videos", folder / "videos")
    clip, landmarks = _clip(folder, "talk.mp4", 0, 60, (96, 128), ALL)
    landmarks.keypoints_TJ3[:30] = 0
    write_clips(folder, [(clip, landmarks)])
    encode(folder, tmp_path / "dataset", config, Console(quiet=True))
    catalog = Catalog.load(tmp_path / "dataset")
    has_pose = catalog.eligible >> Condition.POSE & 1 > 0
    multi = catalog.frames > 1
    assert not has_pose[multi & (catalog.start_frame + catalog.frames <= 30)].any()
    assert has_pose[multi & (catalog.start_frame >= 30)].all()


def test_text_and_the_empty_prompt_are_stored(dataset, config, records):
    spec = open_records(dataset[0]).spec
    tokens, pooled = load_text_encoder(config.text_encoder).encode(["a man talks to the camera .", ""])
    np.testing.assert_array_equal(records[0].text_SE, tokens[0].astype(np.float16))
    np.testing.assert_array_equal(records[0].pooled_E, pooled[0].astype(np.float16))
    np.testing.assert_array_equal(spec.empty_text_SE, tokens[1].astype(np.float16))
    np.testing.assert_array_equal(spec.empty_pooled_E, pooled[1].astype(np.float16))


def test_dataset_says_what_made_it(dataset, networks):
    spec = open_records(dataset[0]).spec
    hashes = {
        f"{kind}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for kind, folder in zip(("text_encoder", "speech_encoder"), networks)
        for file in folder.iterdir()
    }
    assert {
        "text_encoder/tokenizer.json",
        "speech_encoder/config.json",
        "speech_encoder/model.safetensors",
    } <= hashes.keys()
    assert spec.encoder_sha256 == hashes
    assert (spec.codec, spec.latent_channels, spec.margin, spec.speech_layers, spec.audio_width) == (
        "dct",
        48,
        MARGIN,
        (0, 2),
        32,
    )
    assert (spec.text_encoder, spec.speech_encoder) == tuple(map(str, networks)) and spec.max_text_tokens == 61


def test_a_video_autoencoder_encodes_and_is_recorded(clips_dir, networks, tmp_path):
    vae = vae_folders.write_vae(tmp_path / "vae")
    config = EncodeConfig(
        codec=str(vae),
        codec_options={"chunk_latents": 2},
        text_encoder=str(networks[0]),
        windows=WindowConfig(area=32 * 32, frames=(5,), stride=12, image_stride=12, references=1, margin=MARGIN),
    )
    encode(clips_dir, tmp_path / "dataset", config, Console(quiet=True))
    source = open_records(tmp_path / "dataset")
    digest = hashlib.sha256((vae / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert source.spec.encoder_sha256["codec/diffusion_pytorch_model.safetensors"] == digest
    assert (source.spec.codec, source.spec.latent_channels) == (str(vae), 4)
    codec = load_codec(source.spec.codec, source.spec.codec_options)
    assert codec.options["chunk_latents"] == 2 and source.spec.codec_options == codec.options
    size = tuple(8 * side for side in source[0].latents_FHWC.shape[1:3])
    pictures = (
        media_omnihuman.read_video(clips_dir / "videos" / "talk.mp4", size=size, start_s=4 / 25)[:5].astype(np.float32)
        / 127.5
        - 1
    )
    np.testing.assert_allclose(source[0].latents_FHWC, codec.encode(pictures), rtol=1e-3, atol=2e-2)


def test_catalog_agrees_with_the_records(catalog, records):
    for index, record in enumerate(records):
        assert catalog.record[index] == index and catalog.window_id[index] == record.window_id
        assert catalog.eligible[index] == record.eligible and catalog.text_tokens[index] == len(record.text_SE)
        assert catalog.num_references[index] == len(record.references_RHWC)
        shape = (catalog.latent_frames[index], catalog.latent_height[index], catalog.latent_width[index])
        assert record.latents_FHWC.shape[:3] == shape
        assert (catalog.height[index], catalog.width[index]) == (8 * shape[1], 8 * shape[2])
        assert catalog.duration_s[index] == record.frames / 25
    assert catalog.empty_text_tokens == 2


def test_summary_reports_the_round_trip(dataset, clips_dir, capsys):
    _, summary = dataset
    frames = _frames(clips_dir, 40, 57)
    codec = DctCodec()
    pixels = np.clip(np.rint((np.asarray(codec.decode(codec.encode(frames))) + 1) * 127.5), 0, 255)
    psnr = -10 * np.log10(np.mean(np.square((pixels - (frames + 1) * 127.5) / 255)))
    row = next(row for row in summary["clips"] if row["clip_id"] == "talk-040")
    assert abs(row["round_trip_psnr_db"] - psnr) < 1.0  # over all its windows, not only the longest
    assert len(summary["latent_std"]) == 48
    print_summary(summary, Console(width=100))
    assert "talk.mp4 1.6-2.3 s" in capsys.readouterr().out


def test_the_same_clips_and_settings_keep_the_dataset(dataset, clips_dir, config):
    out, summary = dataset
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert encode(clips_dir, out, config, Console(quiet=True)) == summary
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_other_settings_are_refused_unless_overwritten(dataset, clips_dir, config, tmp_path):
    out = shutil.copytree(dataset[0], tmp_path / "dataset")
    other = dataclasses.replace(config, windows=dataclasses.replace(config.windows, frames=(5,)))
    with pytest.raises(ValueError, match=r"other settings.*windows\.frames: \[1, 5, 17\] -> \[5\].*--overwrite"):
        encode(clips_dir, out, other, Console(quiet=True))
    assert open_records(out)[0] is not None
    summary = encode(clips_dir, out, other, Console(quiet=True), overwrite=True)
    assert set(Catalog.load(out).frames) == {5} and summary["by_frames"].keys() == {"5"}
    assert sorted(os.listdir(tmp_path)) == ["dataset"]


def test_a_folder_of_something_else_is_left_alone(clips_dir, config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no dataset of `omnihuman encode`"):
            encode(clips_dir, tmp_path / "mine", config, Console(quiet=True), overwrite=overwrite)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"] and os.listdir(tmp_path) == ["mine"]


def test_without_a_speech_encoder_no_window_has_audio(clips_dir, config, tmp_path):
    encode(
        clips_dir,
        tmp_path / "dataset",
        dataclasses.replace(config, speech_encoder="", speech_layers=()),
        Console(quiet=True),
    )
    assert not (Catalog.load(tmp_path / "dataset").eligible >> Condition.AUDIO & 1).any()
    source = open_records(tmp_path / "dataset")
    assert source.spec.audio_width == 0 and source[0].audio_TE.shape == (0, 0)


def test_the_next_clip_is_decoded_while_one_is_encoded(clips_dir, config, dataset, tmp_path, monkeypatch):
    """On a thread; the bytes are the same, and what cannot be decoded there is that clip's own dead letter."""
    threads, decode = {}, clip_encoder.ClipEncoder._frames

    def noted(self, clip, size):
        threads[clip.clip_id] = threading.current_thread().name
        if clip.clip_id == broken:
            raise ValueError("no pictures")
        return decode(self, clip, size)

    monkeypatch.setattr(clip_encoder.ClipEncoder, "_frames", noted)
    broken = ""
    summary = encode(clips_dir, tmp_path / "whole", config, Console(quiet=True))
    ahead = list(threads)
    assert len(ahead) == len(summary["clips"]) and set(threads.values()) == {"decode_0"}
    assert [shard["sha256"] for shard in summary["shards"]] == [s["sha256"] for s in dataset[1]["shards"]]
    broken = ahead[0]
    (letter,) = encode(clips_dir, tmp_path / "broken", config, Console(quiet=True))["quarantine"]
    assert (letter["clip_id"], letter["reason"]) == (broken, "no pictures")


@pytest.mark.parametrize("devices", [3, 8])
def test_devices_share_the_batches_and_the_bytes_are_the_same(
    clips_dir, config, dataset, tmp_path, monkeypatch, devices
):
    """Batches of several clips go into one call, as many as there are devices; round trips too."""
    calls = []
    encode_all = DctCodec.encode

    def noted(self, video):
        calls.append((self.mesh.size, video.shape))
        return encode_all(self, video)

    monkeypatch.setattr(DctCodec, "encode", noted)
    summary = encode(clips_dir, tmp_path / "dataset", config, Console(quiet=True), share=EncodeShare(devices=devices))
    assert [shard["sha256"] for shard in summary["shards"]] == [s["sha256"] for s in dataset[1]["shards"]]
    assert summary["clips"] == dataset[1]["clips"]
    shared = [shape for _, shape in calls]
    assert {size for size, _ in calls} == {devices}
    # Of one size all there is of a group is one call, or as few as fill the devices; alone each batch is one.
    calls.clear()
    encode(clips_dir, tmp_path / "alone", config, Console(quiet=True), share=EncodeShare(devices=1))
    batches = collections.Counter(shape[1:] for _, shape in calls)
    for shape, count in collections.Counter(shape[1:] for shape in shared).items():
        assert count <= math.ceil(batches[shape] / devices) + 1  # there are two shards
    assert len(shared) < len(calls)


def test_a_clip_of_a_group_that_fails_costs_that_clip_alone(clips_dir, config, dataset, tmp_path, monkeypatch):
    """Whether its file is at fault, what the codec makes of it, or its record."""
    opened, made, windows = (getattr(clip_encoder.ClipEncoder, name) for name in ("open", "latents", "windows"))

    def at(place):
        def failing(self, one, *rest):
            clips = [one] if isinstance(one, Clip) else [o.clip for o in (one if isinstance(one, list) else [one])]
            if any(clip.clip_id == "talk-040" for clip in clips):
                raise ValueError(f"no {place}")
            return {"open": opened, "latents": made, "windows": windows}[place](self, one, *rest)

        return failing

    shares = EncodeShare(devices=2)
    whole = Catalog.load(dataset[0])
    left = [w for w, c in zip(whole.window_id, whole.clip_id) if c != "talk-040"]
    for place in ("open", "latents", "windows"):
        with monkeypatch.context() as patch:
            patch.setattr(clip_encoder.ClipEncoder, place, at(place))
            summary = encode(clips_dir, tmp_path / place, config, Console(quiet=True), share=shares)
        (letter,) = summary["quarantine"]
        assert (letter["clip_id"], letter["reason"]) == ("talk-040", f"no {place}")
        assert Catalog.load(tmp_path / place).window_id.tolist() == left

    def lost(self, clips):
        raise MemoryError("the device is full")

    monkeypatch.setattr(clip_encoder.ClipEncoder, "latents", lost)
    with pytest.raises(MemoryError) as error:
        encode(clips_dir, tmp_path / "lost", config, Console(quiet=True), share=shares)
    assert any("encode was at" in note for note in error.value.__notes__)


def test_dead_letters_are_in_the_order_of_the_clips_whatever_failed_first(clips_dir, dataset, monkeypatch):
    """The first fails in its record, the second cannot be opened: as if each had been alone."""
    first, second, third = list(read_clips(clips_dir))[:3]

    class Encoder:
        def open(self, clip):
            if clip is second:
                raise ValueError("no pictures")
            return clip

        def latents(self, clips):
            return [clip_encoder.ClipLatents() for _ in clips]

        def windows(self, clip, latents):
            if clip is first:
                raise ValueError("no record")
            return iter(())

    monkeypatch.setattr(DeadLetters, "_check_video", lambda self, clip: None)
    letters = DeadLetters(clips_dir)
    found = letters.encoded(Encoder(), [first, second, third], open_records(dataset[0]).spec)
    assert [one.windows for one in found] == [[], [], []]
    rows = letters.taken()
    assert [(row["clip_id"], row["reason"]) for row in rows] == [
        (first.clip_id, "no record"), (second.clip_id, "no pictures"),
    ]  # fmt: skip
    assert letters.taken() == []


def test_groups_are_bounded_by_what_their_frames_take(clips_dir, config, monkeypatch):
    clips = [clip for clip in read_clips(clips_dir) for _ in range(5)]

    def sizes(devices, most):
        monkeypatch.setattr(decode_ahead, "_GROUP_BYTES", most)
        encoder = decode_ahead.AheadEncoder(clips_dir, None, None, None, config.windows, 8, 1.0, devices=devices)
        groups = list(encoder.groups(clips))
        assert [clip for group in groups for clip in group] == clips
        return [len(group) for group in groups]

    assert sizes(1, 1 << 40) == [1] * len(clips)
    assert sizes(2, 1 << 40)[:-1] == [8] * (len(clips) // 8)
    assert sizes(2, 1) == [1] * len(clips)


def test_more_devices_than_there_are_are_refused(clips_dir, config, tmp_path):
    with pytest.raises(ValueError, match=r"--devices 9: this process has 8 \(cpu\); 0 takes all"):
        encode(clips_dir, tmp_path / "d", config, Console(quiet=True), share=EncodeShare(devices=9))
    assert not (tmp_path / "d").exists()


def test_a_clip_that_cannot_be_encoded_costs_that_clip_alone(clips_dir, config, dataset, tmp_path, capsys):
    """The second clip's landmarks are damaged; the third's are not finite, in a place that is named."""
    folder = tmp_path / "curated"
    clips = [(clip, {} if clip.clip_id == "talk-040" else landmarks) for clip, landmarks in _copy(clips_dir, folder)]
    other, landmarks = _clip(folder, "talk.mp4", 10, 30, (96, 128), ALL)
    landmarks.keypoints_TJ3[7, 3, 1] = np.nan
    write_clips(folder, [*clips, (other, landmarks)])
    summary = encode(folder, tmp_path / "dataset", config, Console(quiet=True))
    reasons = {row["clip_id"]: (row["stage"], row["reason"]) for row in summary["quarantine"]}
    assert set(reasons) == {"talk-040", "talk-010"} and {stage for stage, _ in reasons.values()} == {"encode"}
    assert "record 1: no landmarks there ('keypoints_TJ3' is missing)" in reasons["talk-040"][1]
    assert "y of keypoint 3 in frame 7 is nan; it must be in" in reasons["talk-010"][1]
    letters = read_letters(tmp_path / "dataset")
    assert letters == summary["quarantine"] and {(row["exception"], row["tries"]) for row in letters} == {
        ("ValueError", 1)
    }
    assert "dead_letters.parquet" in summary["files"]
    catalog, whole = Catalog.load(tmp_path / "dataset"), Catalog.load(dataset[0])
    assert set(catalog.clip_id) == {"talk-004", "still-000"}
    assert set(catalog.window_id) == {w for w, c in zip(whole.window_id, whole.clip_id) if c != "talk-040"}
    source = open_records(tmp_path / "dataset")
    assert [source[i].window_id for i in range(len(source))] == catalog.window_id.tolist()
    print_summary(summary, Console(width=200))
    printed = capsys.readouterr().out
    assert "left out" in printed and "encode: talk-010: " in printed


def test_every_dead_letter_is_kept_and_few_are_listed(clips_dir, config, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(clips_dir, tmp_path / "curated")
    with (folder / "videos" / "talk.mp4").open("ab") as file:
        file.write(b"more")
    for module in (encoded_shards, dataset_finish):
        monkeypatch.setattr(module, "MAX_ROWS", 1)
    summary = encode(folder, tmp_path / "dataset", config, Console(quiet=True))
    assert [row["clip_id"] for row in summary["quarantine"]] == ["talk-004"] and summary["dead_letters"] == 2
    assert [row["clip_id"] for row in read_letters(tmp_path / "dataset")] == ["talk-004", "talk-040"]
    assert summary["clips"] == [] and summary["num_clips"] == 3 and summary["windows"] > 0
    print_summary(summary, Console(width=200))
    assert "encode: 1 more clips are left out; all are in dead_letters.parquet" in capsys.readouterr().out


def test_no_clip_that_can_be_encoded_leaves_nothing_behind(clips_dir, config, tmp_path):
    folder = tmp_path / "curated"
    write_clips(folder, [(clip, {}) for clip, _ in _copy(clips_dir, folder) if clip.clip_id == "talk-040"])
    with pytest.raises(
        ValueError, match=r"none of the 1 clips can be encoded; the first, talk-040: .*no landmarks there"
    ) as error:
        encode(folder, tmp_path / "dataset", config, Console(quiet=True))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["curated"]


def test_a_video_that_changed_since_curate_or_is_gone_is_left_out(clips_dir, config, tmp_path):
    folder = shutil.copytree(clips_dir, tmp_path / "curated")
    with (folder / "videos" / "talk.mp4").open("ab") as file:
        file.write(b"more")
    summary = encode(folder, tmp_path / "changed", config, Console(quiet=True))
    assert [row["clip_id"] for row in summary["quarantine"]] == ["talk-004", "talk-040"]
    assert all("talk.mp4: changed since curate" in row["reason"] for row in summary["quarantine"])
    os.remove(folder / "videos" / "talk.mp4")
    summary = encode(folder, tmp_path / "gone", config, Console(quiet=True))
    assert "talk.mp4: the video of clip talk-004 is gone" in summary["quarantine"][0]["reason"]
    assert set(Catalog.load(tmp_path / "gone").clip_id) == {"still-000"}


@pytest.mark.parametrize(
    "name",
    [
        b"caf\xe9.mp4",
        b"-rf.mp4",
        b"a\nb\x1b[31m.mp4",
        b"[bold]x[/] <script>alert(1)</script>.mp4".replace(b"/", b"_"),
        b"$(touch pwned)`id`'\".mp4",
        b"back\\slash: {yaml}, DROP TABLE--.mp4",
        ("ü" * 120).encode() + b".mp4",
    ],
)
def test_whatever_a_video_is_called_it_is_encoded(name, clips_dir, config, tmp_path):
    """As curate writes its rows: a text for the name, and a path that opens the file."""
    folder = tmp_path / "curated"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(clips_dir / "videos" / "still.mp4", os.fsencode(folder / "videos") + b"/" + name)
    (row,) = footage.look_into(folder / "videos").videos
    clip, landmarks = _clip(folder, os.fsdecode(name), 0, 1, (64, 64), ("text", "reference"))
    clip_id = stage_parts.clip_id(clip.sha256, 0, 1)
    clip = dataclasses.replace(clip, clip_id=clip_id, video=row, path=f"videos/{row}")
    write_clips(folder, [(clip, landmarks)])
    encode(folder, tmp_path / "dataset", dataclasses.replace(config, speech_encoder=""), Console(quiet=True))
    record = open_records(tmp_path / "dataset")[0]
    assert record.video == row and row.isprintable() and row.encode()
    assert record.clip_id == clip.clip_id and re.fullmatch(r"\w[\w.-]*", record.clip_id)
    assert len(record.window_id.encode()) < 200
    assert os.listdir(os.getcwd()).count("pwned") == 0


@pytest.mark.parametrize("changed", ["reader", "encoder", "records", "network"])
def test_another_reader_encoder_or_network_makes_another_dataset(
    changed, dataset, clips_dir, config, networks, tmp_path, monkeypatch
):
    if changed == "network":
        text = shutil.copytree(networks[0], tmp_path / "bert")
        config = dataclasses.replace(config, text_encoder=str(text))
    out = tmp_path / "dataset"
    encode(clips_dir, out, config, Console(quiet=True))
    encode(clips_dir, out, config, Console(quiet=True))
    if changed == "network":
        tokenizer = text / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + " ")
    else:
        name = {"reader": "READER_VERSION", "records": "VERSION"}.get(changed)
        monkeypatch.setattr(kept_dataset, name, "99") if name else monkeypatch.setattr(clip_encoder, "VERSION", 99)
    named = {"network": "text_encoder"}.get(changed, changed)
    with pytest.raises(ValueError, match=rf"by another version \({named}\); choose another --out"):
        encode(clips_dir, out, config, Console(quiet=True))


def test_clips_too_short_for_any_window(clips_dir, config, tmp_path):
    long = dataclasses.replace(config, windows=dataclasses.replace(config.windows, frames=(401,)))
    with pytest.raises(ValueError, match=r"none of its clips is long enough for a window of \(401,\) frames"):
        encode(clips_dir, tmp_path / "dataset", long, Console(quiet=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": (16,)}, r"1 \+ 4n"),
        ({"frames": ()}, r"1 \+ 4n"),
        ({"stride": -1}, "stride must be at least 0, not -1"),
        ({"references": 0}, "references must be at least 1, not 0"),
        ({"margin": -1}, "margin must be at least 0, not -1"),
        ({"area": 100}, "area 100"),
    ],
)
def test_settings_that_make_no_sense(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, windows=dataclasses.replace(config.windows, **change)).validate()


def test_command_line(clips_dir, networks, tmp_path, dataset, capsys):
    arguments = [str(clips_dir), "--out", str(tmp_path / "dataset"), "--text-encoder", str(networks[0])]
    arguments += [
        "--speech-encoder",
        str(networks[1]),
        "--speech-layers",
        "0,2",
        "--area",
        "64x48",
        "--window-frames",
        "1,5,17",
    ]
    arguments += ["--stride", "6", "--references", "3", "--margin", str(MARGIN)]
    assert main(arguments) == 0
    mine, theirs = Catalog.load(tmp_path / "dataset"), Catalog.load(dataset[0])
    assert mine.fingerprint() == theirs.fingerprint()
    assert json.loads((tmp_path / "dataset" / "encode.json").read_text())["windows"] == len(mine)
    with pytest.raises(FileNotFoundError, match=r"omnihuman curate"):
        main([str(tmp_path / "nothing"), *arguments[1:]])
    with pytest.raises(SystemExit):
        main([*arguments, "--window-frames", "1,x"])
    assert "whole numbers with commas" in capsys.readouterr().err
