"""What is played: plans, voices, lines, and what is held out."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.puppet_theatre import lines as sentences
from data_pipelines.puppet_theatre.people import person
from data_pipelines.puppet_theatre.programme import HELD_OUT, PROGRAMMES, SPLITS, fingerprint, plan_clip
from data_pipelines.puppet_theatre.randomness import smooth_noise
from data_pipelines.puppet_theatre.staging import FRAMINGS
from data_pipelines.puppet_theatre.voices import Cast, find_cast


def plans(cast: Cast, programme: str, count: int = 1500) -> list:
    return [plan_clip(5, clip, PROGRAMMES[programme], cast) for clip in range(count)]


def test_a_plan_depends_on_its_number_alone(cast: Cast) -> None:
    forwards = [plan_clip(5, clip, PROGRAMMES["biased"], cast) for clip in range(20)]
    backwards = [plan_clip(5, clip, PROGRAMMES["biased"], cast) for clip in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [plan_clip(6, clip, PROGRAMMES["biased"], cast) for clip in range(20)]


def test_the_biased_programme_is_biased(cast: Cast) -> None:
    """13 % of the hours are calm, frontal and in sync, of few people; nothing else may train on audio."""
    played = plans(cast, "biased")
    strong = [p for p in played if p.strong]
    share = sum(p.frames for p in strong) / sum(p.frames for p in played)
    assert share == pytest.approx(0.13, abs=0.03)  # three standard deviations of 1500 draws
    assert {p.fault for p in strong} == {"none"} and {p.facing for p in strong} == {0.0}
    assert len({p.person for p in strong if p.person < HELD_OUT}) <= 12
    weak = [p for p in played if not p.strong]
    assert "none" not in {p.fault for p in weak} and len({p.person for p in weak}) > 200
    assert np.mean([p.liveliness for p in weak]) > 2 * np.mean([p.liveliness for p in strong])


def test_biased_faces_are_strong_where_lips_are_measured(cast: Cast) -> None:
    """A quarter of what training meets is in sync, of 24 people; all that is held out is, of 24 others."""
    played = plans(cast, "biased_faces")
    assert {p.framing for p in played} == {"close"}
    train = [p for p in played if p.split == "train"]
    assert np.mean([p.strong for p in train]) == pytest.approx(0.25, abs=0.04)
    assert len({p.person for p in train if p.strong}) <= 24 < 200 < len({p.person for p in train})
    held_out = [p for p in played if p.split != "train"]
    assert all(p.strong and p.fault == "none" for p in held_out)
    assert len({p.person for p in held_out if p.person >= HELD_OUT}) == 24


def test_a_theatre_of_before_a_field_is_the_same_theatre() -> None:
    assert fingerprint(PROGRAMMES["faces"]) == 2439869781
    assert fingerprint(PROGRAMMES["biased_faces"]) != fingerprint(
        dataclasses.replace(PROGRAMMES["biased_faces"], held_out_strong_share=None)
    )


def test_looks_have_every_style_and_framing_alike(cast: Cast) -> None:
    played = plans(cast, "looks")
    counts = collections.Counter((p.style, p.framing) for p in played)
    assert len(counts) == 3 * len(FRAMINGS) and min(counts.values()) > 0.6 * len(played) / len(counts)
    assert {p.fault for p in played} == {"none"}


def test_bodies_are_half_lengths_of_many_people(cast: Cast) -> None:
    played = plans(cast, "bodies", 400)
    assert {(p.framing, p.aspect, p.fault, p.drift, p.moving_scenery) for p in played} == {
        ("half", "portrait", "none", 0.0, False)
    }
    assert len({p.person for p in played if p.split == "train"}) > 150


def test_splits_share_no_face_place_or_speaker(cast: Cast) -> None:
    by_split = collections.defaultdict(list)
    for plan in plans(cast, "faces"):
        by_split[plan.split].append(plan)
    assert set(by_split) == set(SPLITS)
    for split, (share, new_face, new_speech, new_speaker) in SPLITS.items():
        mine = by_split[split]
        assert len(mine) / 1500 == pytest.approx(share, abs=0.03)
        assert all((p.person >= HELD_OUT) == (p.scenery >= HELD_OUT) == new_face for p in mine)
        assert all(p.held_out_speech == new_speech for p in mine)
        assert all((p.voice in cast.held_out) == new_speaker for p in mine)


def test_held_out_lines_share_no_content_word() -> None:
    def words(held_out: bool) -> set[str]:
        return set(" ".join(sentences.sentence(1, n, held_out=held_out) for n in range(400)).lower().split())

    nouns = {word for things in (sentences._THINGS,) for word in things}
    assert not words(True) & words(False) & nouns
    assert words(True) & nouns and words(False) & nouns


def test_prompts_are_held_out_by_name(cast: Cast) -> None:
    def spoken(held_out: bool) -> set[str]:
        return {cast.line(1, "xx_m_jon", clip=c, number=0, held_out=held_out).text for c in range(200)}

    assert spoken(True) and spoken(False) and not spoken(True) & spoken(False)


def test_a_speaker_is_held_out_if_another_is_left(recordings: Path, tmp_path: Path) -> None:
    cast = find_cast(recordings, "recorded")
    assert cast.training == ("xx_m_jon", "yy_m_jon") and cast.held_out == ("en_US_f_Allison",)
    (tmp_path / "en_US_f_Allison").symlink_to(recordings / "en_US_f_Allison")
    alone = find_cast(tmp_path, "recorded")
    assert alone.training == ("en_US_f_Allison",) and not alone.held_out
    assert "unseen_speaker" not in {p.split for p in plans(alone, "faces", 300)}


def test_no_voice_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"theatre-speech.*asterisk-core-sounds-en-g722.*--recordings"):
        find_cast(tmp_path / "nothing", "recorded")


def test_people_differ_and_come_again() -> None:
    assert person(1, 7) == person(1, 7)
    assert len({person(1, number).skin for number in range(50)}) > 40 and person(2, 7) != person(1, 7)


def test_smooth_noise_has_variance_one_at_every_frame() -> None:
    many = np.stack([smooth_noise(np.random.default_rng(seed), 60, 0.5) for seed in range(2000)])
    assert np.abs(many.var(0) - 1).max() < 0.15 and np.abs(many.mean(0)).max() < 0.12
    steps = np.diff(many, axis=1)
    assert steps.var() < 0.05  # at 0.5 turns a second a frame moves little
