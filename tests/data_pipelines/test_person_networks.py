"""YOLOX and RTMPose given by path: random weights at real shapes against the rules in plain loops, and networks of
which the right answer is known.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnx import helper

from data_pipelines.curate import decode, file_stages, landmarks
from data_pipelines.curate.adapters import AdapterOptions, Adapters
from data_pipelines.curate.file_stages import ScanOptions
from data_pipelines.curate.person_network import PersonNetwork
from data_pipelines.curate.stage_keys import stage_keys
from data_pipelines.curate.whole_body_network import FollowedPerson, PersonFinder, WholeBodyNetwork, keypoints_of
from data_pipelines.sample_media import SampleMedia
from omnihuman_jax.data.keypoints import INDEX, KEYPOINT_NAMES, LEFT_HAND, RIGHT_HAND
from tests.data_pipelines.onnx_models import mean_of_all, write

CELLS = 80 * 80 + 40 * 40 + 20 * 20


def yolox(path: Path, classes: int = 80) -> Path:
    """Three grids of random weights, with sigmoids where YOLOX has them; boxes of some cells, which overlap."""
    rng, nodes = np.random.default_rng(0), []
    weights = {"larger": np.array([0, 0, 1.5, 1.5, *[0] * (1 + classes)], np.float32)}
    for stride in (8, 16, 32):
        kernel = rng.normal(0, 0.004 / stride, (5 + classes, 3, stride, stride)).astype(np.float32)
        weights[f"w{stride}"] = kernel
        nodes += [
            helper.make_node("Conv", ["x", f"w{stride}", "larger"], [f"c{stride}"], strides=[stride, stride]),
            helper.make_node("Reshape", [f"c{stride}", "flat"], [f"r{stride}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["r8", "r16", "r32"], ["all"], axis=2),
        helper.make_node("Transpose", ["all"], ["cells"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["cells", "zero", "four", "two"], ["box"]),
        helper.make_node("Slice", ["cells", "four", "end", "two"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["likely"]),
        helper.make_node("Concat", ["box", "likely"], ["output"], axis=2),
    ]
    whole = {"flat": [1, 5 + classes, -1], "zero": [0], "four": [4], "end": [5 + classes], "two": [2]}
    weights |= {name: np.array(value, np.int64) for name, value in whole.items()}
    return write(path, nodes, {"x": [1, 3, 640, 640]}, ["output"], **weights)


def constant(path: Path, shape: list[object], **outputs: np.ndarray) -> Path:
    """Puts out what is given, whatever it sees."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["nothing"]),
    ]
    nodes += [helper.make_node("Add", [f"{name}_given", "nothing"], [name]) for name in outputs]
    return write(path, nodes, {"x": shape}, list(outputs), **{f"{name}_given": a for name, a in outputs.items()})


def people(path: Path, *boxes: tuple[float, float, float, float, float]) -> Path:
    """YOLOX's output for boxes (x0, y0, x1, y1 in its picture, score), each in the cell of 8 pixels that it is in the
    middle of.
    """
    output = np.zeros((1, CELLS, 85), np.float32)
    for x0, y0, x1, y1, score in boxes:
        x, y = (x0 + x1) / 2 / 8, (y0 + y1) / 2 / 8
        row = output[0, int(y) * 80 + int(x)]
        row[:4] = x - int(x), y - int(y), math.log((x1 - x0) / 8), math.log((y1 - y0) / 8)
        row[4:6] = score, 1
    return constant(path, [1, 3, 640, 640], output=output)


def rtmpose(path: Path) -> Path:
    """A layer of patches of random weights, and both axes of 133 points."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "patches"], ["embedded"], strides=[32, 32]),
        helper.make_node("GlobalAveragePool", ["embedded"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    weights = {"patches": rng.normal(0, 0.05, (8, 3, 32, 32)).astype(np.float32)}
    for name, size in (("simcc_x", 576), ("simcc_y", 768)):
        nodes += [
            helper.make_node("MatMul", ["features", f"{name}_w"], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]),
        ]
        weights[f"{name}_w"] = rng.normal(0, 1, (8, 133 * size)).astype(np.float32)
        weights[f"{name}_shape"] = np.array([1, 133, size], np.int64)
    return write(path, nodes, {"x": [1, 3, 384, 288]}, ["simcc_y", "simcc_x"], **weights)


def brightest(path: Path) -> Path:
    """A pose network that says of every point that it is where the picture is brightest, and is sure of it."""
    nodes = []
    for name, axes in (("simcc_x", [1, 2]), ("simcc_y", [1, 3])):
        nodes += [
            helper.make_node("ReduceMax", ["x"], [f"{name}_max"], axes=axes, keepdims=0),
            helper.make_node("MatMul", [f"{name}_max", f"{name}_twice"], [f"{name}_row"]),
            helper.make_node("Unsqueeze", [f"{name}_row", "one"], [f"{name}_rows"]),
            helper.make_node("Expand", [f"{name}_rows", f"{name}_shape"], [name]),
        ]
    weights = {
        f"{name}_twice": np.repeat(np.eye(size, dtype=np.float32), 2, axis=1)
        for name, size in (("simcc_x", 288), ("simcc_y", 384))
    }
    whole = {"one": [1], "simcc_x_shape": [1, 133, 576], "simcc_y_shape": [1, 133, 768]}
    weights |= {name: np.array(value, np.int64) for name, value in whole.items()}
    return write(path, nodes, {"x": [1, 3, 384, 288]}, ["simcc_x", "simcc_y"], **weights)


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    return list(np.random.default_rng(2).integers(0, 256, (count, height, width, 3), np.uint8))


def test_boxes_of_random_weights_are_those_of_the_rule(tmp_path: Path) -> None:
    """Cell by cell and pair by pair, as YOLOX's own demonstration has it."""
    network = PersonNetwork.load(str(yolox(tmp_path / "yolox.onnx")))
    assert network.size == (640, 640)
    (frame,) = pictures(1, 318, 320)  # nearly no grey, whose cells are all alike
    seen = np.full((640, 640, 3), 114, np.uint8)
    seen[:636] = cv2.resize(frame, (640, 636), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    session = onnxruntime.InferenceSession(tmp_path / "yolox.onnx")
    (output,) = session.run(None, {"x": seen.transpose(2, 0, 1)[None].astype(np.float32)})
    assert output.shape == (1, CELLS, 85)
    boxes, at = [], 0
    for stride in (8, 16, 32):
        for row in range(640 // stride):
            for column in range(640 // stride):
                x, y, w, h, thing, person = (float(v) for v in output[0, at, :6])
                x, y, w, h = (x + column) * stride, (y + row) * stride, math.exp(w) * stride, math.exp(h) * stride
                if thing * person > 0.3:
                    boxes.append((thing * person, x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                at += 1
    left = []
    for box in sorted(boxes, reverse=True):
        if all(share(box[1:], other[1:]) <= 0.45 for other in left):
            left.append(box)
    assert 20 < len(left) < len(boxes)
    expected = np.array([[*(side / 2 for side in box[1:]), box[0]] for box in left])
    np.testing.assert_allclose(network.boxes(frame), expected, rtol=1e-3, atol=0.05)


def share(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_people_are_found_in_pixels_of_the_frame(tmp_path: Path) -> None:
    file = people(tmp_path / "a.onnx", (64, 32, 192, 320, 0.9), (80, 40, 208, 328, 0.8), (400, 100, 500, 300, 0.5),
                  (10, 10, 50, 50, 0.2))  # fmt: skip
    boxes = PersonNetwork.load(str(file)).boxes(np.zeros((1080, 1920, 3), np.uint8))
    np.testing.assert_allclose(boxes, [[192, 96, 576, 960, 0.9], [1200, 300, 1500, 900, 0.5]], rtol=1e-4)
    assert not len(PersonNetwork.load(str(people(tmp_path / "b.onnx"))).boxes(np.zeros((90, 160, 3), np.uint8)))
    dets = np.array([[[64, 32, 192, 320, 0.9], [400, 100, 500, 300, 0.5], [1, 1, 90, 90, 0.8]]], np.float32)
    inside = constant(tmp_path / "c.onnx", [1, 3, 640, 640], dets=dets, labels=np.array([[0, 0, 7]], np.float32))
    np.testing.assert_allclose(PersonNetwork.load(str(inside)).boxes(np.zeros((1080, 1920, 3), np.uint8)), boxes)


def test_points_of_random_weights_are_those_of_the_rule(tmp_path: Path) -> None:
    """By way of OpenCV's own affine transform of three corners, as RTMPose has it; whatever the outputs' order."""
    network = WholeBodyNetwork.load(str(rtmpose(tmp_path / "pose.onnx")))
    (frame,) = pictures(1, 240, 320)
    session = onnxruntime.InferenceSession(tmp_path / "pose.onnx")
    for box in ((100, 50, 180, 200), (20, 100, 300, 140)):
        centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        width, height = 1.25 * (box[2] - box[0]), 1.25 * (box[3] - box[1])
        if width > height * 288 / 384:
            height = width * 384 / 288
        else:
            width = height * 288 / 384
        theirs = np.array([centre, centre - [0, width / 2], centre - [width / 2, width / 2]], np.float32)
        ours = np.array([[144, 192], [144, 192 - 144], [144 - 144, 192 - 144]], np.float32)
        seen = cv2.warpAffine(frame, cv2.getAffineTransform(theirs, ours), (288, 384), flags=cv2.INTER_LINEAR)
        normal = (seen - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
        along_x, along_y = session.run(
            ["simcc_x", "simcc_y"], {"x": normal.transpose(2, 0, 1)[None].astype(np.float32)}
        )
        found = network.points(frame, np.array(box, np.float32))
        for point in range(133):
            x, y = int(along_x[0, point].argmax()) / 2, int(along_y[0, point].argmax()) / 2
            place = np.array([x / 288 * width, y / 384 * height]) + centre - np.array([width, height]) / 2
            sure = min(along_x[0, point].max(), along_y[0, point].max(), 1)
            np.testing.assert_allclose(found[point], [*place, max(0, sure)], rtol=1e-3, atol=1e-2)
    assert len(np.unique(found[:, :2], axis=0)) > 100


def test_a_point_is_found_where_it_is(tmp_path: Path) -> None:
    network = WholeBodyNetwork.load(str(brightest(tmp_path / "pose.onnx")))
    for height, width, box, dot in (
        (480, 640, (200, 100, 350, 400), (310, 220)),
        (90, 160, (30, 5, 150, 85), (40, 60)),
    ):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[dot[1] - 1 : dot[1] + 2, dot[0] - 1 : dot[0] + 2] = 255
        found = network.points(frame, np.array(box, np.float32))
        assert np.abs(found[:, :2] - dot).max() <= 1.5 and (found[:, 2] == 1).all()


def test_every_keypoint_has_its_point() -> None:
    points = np.stack([np.arange(133) + 1, np.arange(133) + 501, np.full(133, 0.9)], axis=1).astype(np.float32)
    keypoints = keypoints_of(points, (700, 200))
    assert (keypoints[:, 2] == np.float32(0.9)).all()
    theirs = {name: int(keypoints[row, 0]) - 1 for name, row in INDEX.items()}
    named = {
        "nose": 0, "left_eye": 1, "right_ear": 4, "left_shoulder": 5, "right_wrist": 10, "left_ankle": 15,
        "left_foot_index": 17, "left_heel": 19, "right_foot_index": 20, "right_heel": 22, "right_eye_outer": 59,
        "left_eye_outer": 68, "mouth_right": 71, "mouth_left": 77, "left_hand_wrist": 91, "left_hand_pinky_4": 111,
        "right_hand_wrist": 112, "right_hand_thumb_4": 116, "right_hand_pinky_4": 132,
        "left_index": 96, "left_hand_index_1": 96, "right_pinky": 129, "right_hand_pinky_1": 129,
    }  # fmt: skip
    assert {name: theirs[name] for name in named} == named and len(theirs) == len(KEYPOINT_NAMES)
    # Left and right are each other's mirror.
    partner = {"left": "right", "right": "left"}
    for name, point in theirs.items():
        side, _, rest = name.partition("_")
        if side in partner and "_hand_" not in name and 5 <= point < 17:
            assert theirs[f"{partner[side]}_{rest}"] == point + (1 if side == "left" else -1)


def test_what_is_not_sure_or_outside_was_not_found() -> None:
    points = np.tile(np.array([50, 50, 0.9], np.float32), (133, 1))
    points[0, 2], points[5, 0], points[6, 1] = 0.29, -1, 100
    points[91 + np.arange(11), 2] = 0.1  # the left hand has 10 points, the right one 11
    points[112 + np.arange(10), 2] = 0.1
    keypoints = keypoints_of(points, (100, 100))
    lost = {KEYPOINT_NAMES[row] for row in np.flatnonzero(~keypoints.any(axis=1)) if row < 33}
    assert lost == {"nose", "left_shoulder", "right_shoulder", "left_thumb", "left_index", "right_thumb", "right_index"}
    assert not keypoints[LEFT_HAND].any() and np.count_nonzero(keypoints[RIGHT_HAND, 2]) == 11


def test_one_person_is_followed(tmp_path: Path) -> None:
    def boxes(name: str, *found: tuple[float, float, float, float, float]) -> PersonNetwork:
        return PersonNetwork.load(str(people(tmp_path / f"{name}.onnx", *found)))

    small, large = (100, 100, 180, 260, 0.9), (300, 50, 500, 450, 0.8)
    pose = WholeBodyNetwork.load(str(brightest(tmp_path / "pose.onnx")))
    frame = np.zeros((640, 640, 3), np.uint8)
    frame[180, 140] = frame[250, 400] = 255
    one = FollowedPerson(PersonFinder(person=boxes("both", small, large), pose=pose))
    assert one.keypoints(frame, hands=True)[INDEX["nose"], :2] == pytest.approx([400, 250], abs=2), "the largest"
    one._finder = PersonFinder(person=boxes("none"), pose=pose)
    assert not one.keypoints(frame, hands=True).any()
    larger = (60, 20, 299, 600, 0.9)
    one._finder = PersonFinder(person=boxes("grown", larger, (310, 60, 500, 440, 0.5)), pose=pose)
    found = one.keypoints(frame, hands=False)
    assert found[INDEX["nose"], :2] == pytest.approx([400, 250], abs=2), "who was followed, not the largest"
    assert not found[LEFT_HAND].any() and not found[RIGHT_HAND].any()


def test_the_stages_look_through_given_networks(sample_media: SampleMedia, tmp_path: Path) -> None:
    """Points in pixels of the whole picture, faces still by MediaPipe; and the keys of the stages that looked."""
    files = {"person_network": people(tmp_path / "person.onnx", (40, 40, 600, 500, 0.9)), "pose_network":
             brightest(tmp_path / "pose.onnx")}  # fmt: skip
    given = AdapterOptions(**{name: str(path) for name, path in files.items()}).load()
    video = str(sample_media.videos / "jwpIntro.mp4")
    row, found = file_stages.look(video, 0, 3, 1080, 1440, given.finder)
    assert row["pose_share"] == row["hand_share"] == 1 and row["face_share"] == 1
    frame = next(iter(decode.scored_frames(video, 0, 3, 1080, 1440)))
    points = FollowedPerson(given.finder).keypoints(frame, hands=True)
    np.testing.assert_allclose(found.keypoints_TJ3[0, :, :2], points[:, :2] * 1080 / frame.shape[0], rtol=1e-5)
    seen = landmarks.extract_landmarks([frame], hands=False, finder=given.finder)
    assert not seen.keypoints_TJ3[0, LEFT_HAND].any() and seen.keypoints_TJ3[0, 0].any()
    keys = [stage_keys(ScanOptions(), one) for one in (Adapters(), given)]
    assert [stage for stage in keys[0] if keys[0][stage] != keys[1][stage]] == ["preview", "look", "listen"]


def test_what_is_no_such_network(tmp_path: Path) -> None:
    mean = mean_of_all(tmp_path / "mean.onnx", ["N", 3, 640, 640])
    flat = mean_of_all(tmp_path / "flat.onnx", [1, 4])
    with pytest.raises(ValueError, match=r"flat\.onnx: has the inputs x .*; a person network has one, tensor"):
        PersonNetwork.load(str(flat))
    with pytest.raises(ValueError, match=r"flat\.onnx: has the inputs x .*; a pose network has one, tensor"):
        WholeBodyNetwork.load(str(flat))
    with pytest.raises(ValueError, match=r"puts out \['N'\]; a person network puts out \[1, 8400, 5 \+ classes\], or"):
        PersonNetwork.load(str(mean))
    with pytest.raises(ValueError, match=r"mean\.onnx: has the outputs score; a pose network has two, simcc_x and"):
        WholeBodyNetwork.load(str(mean))
    few = {"simcc_x": np.zeros((1, 17, 576), np.float32), "simcc_y": np.zeros((1, 17, 768), np.float32)}
    message = r"puts out simcc_x \[1, 17, 576\]; a pose network of 133 points .* 384 x 288 puts out \[1, 133, 576\]"
    with pytest.raises(ValueError, match=message):
        WholeBodyNetwork.load(str(constant(tmp_path / "coco.onnx", [1, 3, 384, 288], **few)))
    with pytest.raises(
        ValueError, match="--pose-network finds nothing without --person-network; give both, or neither"
    ):
        AdapterOptions(pose_network="a.onnx").load()
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such network"):
        AdapterOptions(person_network="gone.onnx", pose_network="a.onnx").load()
