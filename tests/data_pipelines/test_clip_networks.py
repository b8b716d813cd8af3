"""Networks given by path: of random weights at real shapes, and of so little that the right answer is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipelines.curate import clip_networks, decode, file_stages
from data_pipelines.curate.adapters import NO_ADAPTERS, Adapters
from data_pipelines.curate.clip_networks import ClipNetwork, View
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.shot_network import ShotNetwork, cuts_of
from data_pipelines.curate.shots import ShotConfig
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.serving import media_omnihuman
from tests.data_pipelines.onnx_models import jump_network, mean_of_all, patch_network


def clip(*levels: int, size: tuple[int, int] = (90, 160)) -> list[np.ndarray]:
    return [np.full((*size, 3), level, np.uint8) for level in levels]


@pytest.mark.parametrize(("layout", "shape"), [
    ("NCHW", ["N", 3, 224, 224]), ("NCTHW", [1, 3, "T", 224, 224]), ("NTCHW", [1, "T", 3, 224, 224]),
])  # fmt: skip
def test_frames_reach_a_network_as_it_wants_them(layout: str, shape: list[object], tmp_path: Path) -> None:
    view = {"layout": layout, "mean": [0.5, 0.4, 0.1], "std": [0.2, 0.25, 0.5], "output": "score"}
    network = ClipNetwork.load(str(mean_of_all(tmp_path / "net.onnx", shape, view)))
    frames = clip(51, 102)
    frames[0][..., 0] = 255  # red comes first
    normalised = [[(v / 255 - m) / s for v, m, s in zip(rgb, view["mean"], view["std"], strict=True)] for rgb in
                  ((255, 51, 51), (102, 102, 102))]  # fmt: skip
    assert network.score(frames) == pytest.approx(np.mean(normalised), abs=1e-3)


def test_the_middle_of_the_picture_is_shown(tmp_path: Path) -> None:
    view = {"mean": [0, 0, 0], "std": [1, 1, 1], "height": 32, "width": 32}
    network = ClipNetwork.load(str(mean_of_all(tmp_path / "net.onnx", ["N", 3, 32, 32], view)))
    wide = np.zeros((64, 256, 3), np.uint8)
    wide[:, 96:160] = 255
    assert network.score([wide]) == network.score([wide.swapaxes(0, 1)]) == pytest.approx(1, abs=0.01)


def test_a_network_of_real_shapes_repeats_to_the_bit(tmp_path: Path) -> None:
    network = ClipNetwork.load(str(patch_network(tmp_path / "net.onnx")))
    frames = list(np.random.default_rng(1).integers(0, 256, (8, 180, 320, 3), np.uint8))
    score = network.score(frames)
    assert np.isfinite(score) and score == network.score(frames)
    assert abs(network.score([cv2.GaussianBlur(frame, (0, 0), 4) for frame in frames]) - score) > 0.01


def test_the_digest_is_of_bytes_and_view_and_not_of_the_path(tmp_path: Path) -> None:
    shape = ["N", 3, 224, 224]
    (tmp_path / "other").mkdir()
    one = ClipNetwork.load(str(mean_of_all(tmp_path / "net.onnx", shape)))
    same = ClipNetwork.load(str(mean_of_all(tmp_path / "other" / "renamed.onnx", shape, {})))
    fewer = ClipNetwork.load(str(mean_of_all(tmp_path / "other" / "fewer.onnx", shape, {"frames": 4})))
    weights = ClipNetwork.load(str(patch_network(tmp_path / "weights.onnx")))
    assert one.digest == same.digest and len({one.digest, fewer.digest, weights.digest}) == 3


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"layout": "NHWC"}, r"net\.json: layout must be one of NCHW, NCTHW, NTCHW, not 'NHWC'"),
        ({"frames": 0}, r"net\.json: frames must be at least 1, not 0"),
        ({"std": [1, 0, 1]}, r"net\.json: std must be greater than 0"),
        ({"output": "quality"}, r"net\.json: output must be one of score, not 'quality'"),
        ({"size": 224}, r"net\.json: .*size"),
    ],
)
def test_a_view_that_fits_no_network_is_refused(view: dict[str, object], message: str, tmp_path: Path) -> None:
    mean_of_all(tmp_path / "net.onnx", ["N", 3, 224, 224], view)
    with pytest.raises(ValueError, match=message):
        ClipNetwork.load(str(tmp_path / "net.onnx"))


def test_names_on_the_command_line() -> None:
    assert clip_networks.parse(["aesthetic=a.onnx", "technical=b=c.onnx"]) == {
        "aesthetic": "a.onnx", "technical": "b=c.onnx",
    }  # fmt: skip
    for wrong in (["beauty=a.onnx"], ["aesthetic"], ["aesthetic="]):
        with pytest.raises(ValueError, match=r"NAME=PATH\.onnx, with NAME one of aesthetic, technical"):
            clip_networks.parse(wrong)
    with pytest.raises(ValueError, match="aesthetic is given twice"):
        clip_networks.parse(["aesthetic=a.onnx", "aesthetic=b.onnx"])
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such network"):
        ClipNetwork.load("gone.onnx")
    assert View().layout == "NCHW"


@pytest.mark.parametrize("frames", [1, 60, 100, 230])
def test_a_shot_network_sees_every_frame_once(frames: int, tmp_path: Path) -> None:
    network = ShotNetwork(jump_network(tmp_path / "shots.onnx"))
    jumps = [at for at in (10, 49, 50, 51, 99, 149, 228) if at < frames - 1]
    level = 0
    for at in range(frames):
        network.add(np.full((27, 48, 3), level, np.uint8))
        level = 100 - level if at in jumps else level
    found = network.probabilities()
    assert len(found) == frames and np.flatnonzero(found > 0.5).tolist() == jumps


def test_a_dissolve_is_a_shot_of_its_own() -> None:
    probabilities = np.zeros(100)
    probabilities[[20, 60, 61, 62, 63, 99]] = 0.9
    assert cuts_of(probabilities) == [21, 60, 64]
    assert cuts_of(np.zeros(5)) == [] and cuts_of(np.ones(5)) == []


def test_another_network_is_no_shot_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a shot network has one, \[1, 100, 27, 48, 3\]"):
        ShotNetwork(mean_of_all(tmp_path / "net.onnx", ["N", 3, 224, 224]))


def test_a_given_network_scores_clips_and_is_in_the_key_of_the_preview_alone(
    sample_media: SampleMedia, tmp_path: Path
) -> None:
    path = str(sample_media.videos / "carphone_pristine.mp4")
    networks = {
        "aesthetic": ClipNetwork.load(str(mean_of_all(tmp_path / "net.onnx", ["N", 3, 224, 224], {"frames": 2})))
    }
    row, _ = file_stages.preview(path, 0, 10, 144, 192, networks)
    frames = list(decode.scored_frames(path, 0, 10, 144, 192))
    assert row["aesthetic"] == networks["aesthetic"].score([frames[2], frames[7]])
    assert row["technical_why"] == file_stages.NO_NETWORK and "technical" not in row and "aesthetic_why" not in row
    assert set(row) - {"technical_why"} == {*file_stages.KNOWN_SCORES, *file_stages.PREVIEW_SCORES} - {"technical"}
    without, given = (stage_keys(ScanOptions(), given) for given in (NO_ADAPTERS, Adapters(scorers=networks)))
    assert [stage for stage in without if without[stage] != given[stage]] == ["preview"]


def test_a_shot_network_cuts_in_place_of_the_thumbnails_and_is_known_by_its_bytes(tmp_path: Path) -> None:
    levels = np.repeat(np.array([60, 90, 60], np.uint8), [30, 40, 35])
    video = np.broadcast_to(levels[:, None, None, None], (105, 64, 96, 3))
    media_omnihuman.write_video(tmp_path / "video.mp4", video)
    (tmp_path / "other").mkdir()
    network = jump_network(tmp_path / "shots.onnx")
    copied = jump_network(tmp_path / "other" / "renamed.onnx")
    by_network, by_copy = (
        ScanOptions(shots=ShotConfig(network=str(path), min_change=99)) for path in (network, copied)
    )
    found = file_stages.scan(str(tmp_path / "video.mp4"), by_network)
    assert found.ranges == ((0, 29), (31, 69), (71, 105))
    assert file_stages.scan(str(tmp_path / "video.mp4"), ScanOptions(shots=ShotConfig(min_change=99))).ranges == (
        (0, 105),
    )
    assert stage_keys(by_network) == stage_keys(by_copy)
    assert stage_keys(by_network)["scan"] != stage_keys(ScanOptions())["scan"]
    assert str(tmp_path) not in str(by_network.stated())
