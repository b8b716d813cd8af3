"""Clips as they are drawn: the truth is what the pixels and the sound say."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.puppet_theatre.gesture_law import PROSODY_SHARE, gesture_signals, prosody
from data_pipelines.puppet_theatre.mouth_shapes import loudness, mouth_of_phones
from data_pipelines.puppet_theatre.performance import Performance, perform
from data_pipelines.puppet_theatre.programme import PROGRAMMES, plan_clip
from data_pipelines.puppet_theatre.sound import speak
from data_pipelines.puppet_theatre.voices import Cast, Speech
from omnihuman_jax.data.keypoints import INDEX, LEFT_HAND, RIGHT_HAND
from omnihuman_jax.evaluation.mouth import crop, fit_readout
from tests.data_pipelines.puppet_theatre.conftest import short


def play(cast: Cast, speech: Speech, fault: str = "none", clip: int = 0, **changes: object) -> Performance:
    plan = plan_clip(1, clip, short(faults={fault: 1}), cast)
    plan = dataclasses.replace(plan, **{"framing": "half", "style": "shaded", "drift": 0.0, **changes})
    return perform(1, plan, cast, speech)


def test_the_same_clip_is_the_same_bits(cast: Cast, speech: Speech) -> None:
    first, again = (play(cast, speech, clip=3) for _ in range(2))
    assert np.array_equal(first.frames_THW3, again.frames_THW3) and np.array_equal(first.wave, again.wave)
    assert first.truth.facts == again.truth.facts
    assert not np.array_equal(first.frames_THW3, play(cast, speech, clip=4).frames_THW3)


@pytest.mark.parametrize("style", ["shaded", "flat", "line"])
@pytest.mark.parametrize("framing", ["close", "bust"])
def test_the_drawn_mouth_opens_as_the_truth_says(cast: Cast, speech: Speech, style: str, framing: str) -> None:
    """Read off the pixels around the mouth: fitted on every other frame, measured on the rest."""
    played = play(cast, speech, style=style, framing=framing, facing=0.0, liveliness=0.2)
    truth = played.truth
    pictures = crop(played.frames_THW3 / 127.5 - 1, truth.mouth_box_T4.mean(0))
    readout = fit_readout(pictures[::2], truth.opening_T[::2], ridge=1.0)
    assert np.corrcoef(readout(pictures[1::2]), truth.opening_T[1::2])[0, 1] > 0.9
    assert played.truth.opening_T.max() > 0.5 and np.all(played.truth.gap_T > 0)


def test_keypoints_are_where_things_are_drawn(cast: Cast, speech: Speech) -> None:
    """Hands have the colour of skin, shoulders that of the shirt, in light that is white."""
    played = play(cast, speech, framing="half", style="flat")
    person = played.truth.facts["people"][0]
    points = played.truth.keypoints_TJ3
    for names, colour in (((LEFT_HAND.start + 9, RIGHT_HAND.start + 9), "skin"),):
        for index in names:
            seen = points[:, index, 2] > 0
            assert seen.mean() > 0.9
            x, y = np.rint(points[seen, index, :2]).astype(int).T
            found = played.frames_THW3[seen][np.arange(seen.sum()), np.clip(y, 0, 127), np.clip(x, 0, 127)]
            hue = found / np.maximum(1, found.sum(1, keepdims=True))
            wanted = np.array(person[colour]) / sum(person[colour])
            assert np.median(np.abs(hue - wanted).max(1)) < 0.09
    assert (points[..., 2] <= 1).all() and (points[points[..., 2] == 0] == 0).all()
    assert (points[:, INDEX["left_shoulder"], 0] > points[:, INDEX["right_shoulder"], 0]).all()


def test_a_full_figure_has_every_keypoint_and_a_close_up_only_the_face(cast: Cast, speech: Speech) -> None:
    full = play(cast, speech, framing="full", liveliness=0.4).truth
    assert (full.keypoints_TJ3[..., 2] > 0).mean(0).min() > 0.8 and "pose" in full.facts["eligible"]
    close = play(cast, speech, framing="close", facing=0.0).truth
    assert not close.keypoints_TJ3[:, 11:, 2].any() and close.keypoints_TJ3[:, INDEX["nose"], 2].all()
    assert "pose" not in close.facts["eligible"]


@pytest.mark.parametrize(("programme", "audio"), [("bodies", False), ("speaking_bodies", True)])
def test_bodies_train_poses_and_larger_ones_lips_too(cast: Cast, speech: Speech, programme: str, audio: bool) -> None:
    plan = dataclasses.replace(plan_clip(1, 0, PROGRAMMES[programme], cast), frames=126)
    eligible = perform(1, plan, cast, speech).truth.facts["eligible"]
    assert "pose" in eligible and ("audio" in eligible) == audio


def test_faults_of_the_sound(cast: Cast, speech: Speech) -> None:
    sync, dubbed, late, partly = (play(cast, speech, fault) for fault in ("none", "dubbed", "late", "partly_dubbed"))
    assert np.array_equal(sync.truth.heard_T, sync.truth.opening_T)
    for other in (dubbed, late, partly):
        assert np.array_equal(other.truth.opening_T, sync.truth.opening_T)  # the picture is the same
        assert not np.array_equal(other.wave, sync.wave) and "audio" not in other.truth.facts["eligible"]
    delay = round(late.truth.facts["plan"]["delay_s"] * 25)
    assert 7 <= delay <= 20 and sync.wave is not None and late.wave is not None
    assert np.array_equal(late.wave[delay * 640 :], sync.wave[: -delay * 640])
    assert np.array_equal(late.truth.heard_T[delay:], sync.truth.opening_T[:-delay])
    half = sync.truth.frames // 2
    assert partly.wave is not None and np.array_equal(partly.wave[: half * 640], sync.wave[: half * 640])
    assert play(cast, speech, "no_track").wave is None
    silent = play(cast, speech, "silent").wave
    assert silent is not None and not silent.any()
    assert np.ptp(play(cast, speech, "off_screen").truth.opening_T) == 0


def test_faults_of_the_picture(cast: Cast, speech: Speech) -> None:
    still = play(cast, speech, "still").frames_THW3
    assert not (still != still[0]).any()
    sharp, blurred = play(cast, speech).frames_THW3, play(cast, speech, "blur").frames_THW3
    edges = [np.abs(np.diff(frames.astype(float), n=2, axis=2)).mean() for frames in (sharp, blurred)]
    assert edges[1] < 0.5 * edges[0]
    away = play(cast, speech, "turned_away").truth
    assert not away.mouth_seen_T.any() and not away.faces_T.any() and not away.keypoints_TJ3[:, INDEX["nose"]].any()
    assert play(cast, speech, "second_face").truth.faces_T.tolist() == [2] * away.frames
    hidden = play(cast, speech, "hands_hidden").truth
    assert not hidden.keypoints_TJ3[:, LEFT_HAND].any() and hidden.keypoints_TJ3[:, INDEX["left_shoulder"], 2].all()
    cut = play(cast, speech, "cut")
    (_, first), (second, _) = cut.truth.facts["shots"]
    change = np.abs(np.diff(cut.frames_THW3.astype(float), axis=0)).mean((1, 2, 3))
    assert first == second and change.argmax() == first - 1
    assert len(cut.truth.facts["people"]) == len(cut.truth.facts["sceneries"]) == 2


def test_gestures_follow_prosody_by_their_law(cast: Cast, speech: Speech) -> None:
    """Over many performances of one speech: what they share, and how much they differ."""
    plan = plan_clip(1, 0, short(seconds=(8.0, 8.0)), cast)
    heard_T = speak(1, plan, cast, speech).mouth.loudness_T
    many = np.stack([gesture_signals(1, clip, heard_T) for clip in range(300)])
    assert np.allclose(many.mean(0), np.sqrt(PROSODY_SHARE) * prosody(heard_T)[:, None], atol=0.25)
    assert many.var(0).mean() == pytest.approx(1 - PROSODY_SHARE, abs=0.05)


def test_mouths_close_for_bilabials_and_in_silence() -> None:
    spans = [("ɑ", 0.0, 0.4), ("m", 0.4, 0.8), ("u", 0.8, 1.2)]
    opening_T, spread_T = mouth_of_phones(spans, 30)
    assert opening_T[5] > 0.9 and opening_T[15] < 0.05 and 0.1 < opening_T[25] < 0.4 and spread_T[25] < -0.8
    wave = np.concatenate([np.zeros(8000), np.random.default_rng(0).normal(size=8000) * 0.1]).astype(np.float32)
    heard_T = loudness(wave, 25)
    assert heard_T[:11].max() < 0.01 and heard_T[15:].min() > 0.8
