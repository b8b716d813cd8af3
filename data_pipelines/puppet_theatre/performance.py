"""A plan played: frames, sound and truth. A pure function of (seed, plan, cast)."""

import dataclasses
from typing import Any

import numpy as np

from data_pipelines.curate.tagging import Thresholds
from data_pipelines.puppet_theatre.faults import FAULTS
from data_pipelines.puppet_theatre.gestures import Manner, Mouth, act
from data_pipelines.puppet_theatre.people import Person, person
from data_pipelines.puppet_theatre.programme import HELD_OUT, ClipPlan
from data_pipelines.puppet_theatre.scene_captions import caption
from data_pipelines.puppet_theatre.scenery import Scenery, mean_colour, scenery
from data_pipelines.puppet_theatre.sound import closed, soundtrack
from data_pipelines.puppet_theatre.stage import DrawnFigure, FigureState, Place, PuppetStage
from data_pipelines.puppet_theatre.staging import FRAMINGS, Camera, camera, picture_size
from data_pipelines.puppet_theatre.truth import Truth
from data_pipelines.puppet_theatre.voices import Cast, Speech
from omnihuman_jax.conditions import Condition

_BLUR = 0.03  # of the picture's height
# A second person stands beside the first: both move aside by this share of the picture's width.
_ASIDE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """frames_THW3 uint8; wave float32 [T * 640] at 16 kHz, or None for no track."""

    frames_THW3: np.ndarray
    wave: np.ndarray | None
    caption: str
    truth: Truth


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Role:
    """A person on the stage, and how they move in all frames."""

    who: Person
    states: list[FigureState]
    aside: float = 0.0


def perform(seed: int, plan: ClipPlan, cast: Cast, speech: Speech) -> Performance:
    """Plays clip `plan.clip` of the world `seed`."""
    track = soundtrack(seed, plan, cast, speech)
    roles, signals = _roles(seed, plan, track.mouth)
    scene = _scenery(seed, plan, plan.scenery)
    frames, drawn = _draw(seed, plan, roles, scene)
    facts: dict[str, Any] = {
        "plan": dataclasses.asdict(plan),
        "what_is_wrong": FAULTS[plan.fault].what,
        "lines": [dataclasses.asdict(line) for line in track.lines],
        # One a shot.
        "people": [roles[0].who.colours, _after_cut(seed, plan)[0].colours][: len(shots(plan))],
        "sceneries": [scene.colours, _after_cut(seed, plan)[1].colours][: len(shots(plan))],
        "edge_colour": [round(float(c), 2) for c in mean_colour(frames).mean(0)],
        "size_px": list(frames.shape[1:3]),
        "figure_px": FRAMINGS[plan.framing].figure * FRAMINGS[plan.framing].head * frames.shape[1],
        "shots": [list(shot) for shot in shots(plan)],
        "eligible": list(eligible(plan, drawn)),
    }
    turned, hidden = plan.fault == "turned_away", plan.fault in ("turned_away", "covered")
    truth = Truth(
        opening_T=track.mouth.opening_T.astype(np.float32),
        spread_T=track.mouth.spread_T.astype(np.float32),
        heard_T=track.heard_T.astype(np.float32),
        gap_T=np.array([figure.gap for figure in drawn], np.float32),
        width_T=np.array([figure.mouth_width for figure in drawn], np.float32),
        mouth_seen_T=np.full(plan.frames, not hidden),
        keypoints_TJ3=np.stack([figure.keypoints_J3 for figure in drawn]),
        mouth_box_T4=np.stack([figure.mouth_box_4 for figure in drawn]),
        face_box_T4=np.stack([figure.face_box_4 for figure in drawn]),
        faces_T=np.full(plan.frames, 0 if turned else len(roles), np.int32),
        gestures_TG=signals.astype(np.float32),
        facts=facts,
    )
    return Performance(frames_THW3=frames, wave=track.wave, caption=caption(seed, plan, roles[0].who), truth=truth)


def shots(plan: ClipPlan) -> tuple[tuple[int, int], ...]:
    """Ranges of frames without a cut."""
    if plan.fault == "cut":
        return ((0, plan.frames // 2), (plan.frames // 2, plan.frames))
    return ((0, plan.frames),)


def eligible(plan: ClipPlan, drawn: list[DrawnFigure]) -> tuple[str, ...]:
    """Labels of the conditions that a judge without error, with curate's thresholds, would let the clip train."""
    thresholds = Thresholds()
    spoilt = set(FAULTS[plan.fault].spoils)
    width = np.median([figure.face_box_4[2] - figure.face_box_4[0] for figure in drawn])
    shortest = min(end - start for start, end in shots(plan)) / 25
    if width < thresholds.min_face_px or shortest < thresholds.min_audio_s:
        spoilt.add(Condition.AUDIO)
    if plan.framing in ("close", "face"):  # no shoulders
        spoilt.add(Condition.POSE)
    return tuple(condition.label for condition in Condition if condition not in spoilt)


def _roles(seed: int, plan: ClipPlan, mouth: Mouth) -> tuple[list[_Role], np.ndarray]:
    """(the people on the stage, the speaker first; the speaker's gesture signals)."""
    framing = FRAMINGS[plan.framing]
    arms = framing.arms and plan.fault != "hands_hidden"
    manner = Manner(liveliness=plan.liveliness, facing=plan.facing, arms=arms)
    states, signals = act(seed, plan.clip, mouth, manner)
    if plan.fault in ("turned_away", "covered"):
        mark = {"turned_away" if plan.fault == "turned_away" else "covered": True}
        states = [dataclasses.replace(s, head=dataclasses.replace(s.head, **mark)) for s in states]
    if plan.fault == "still":
        states = states[:1] * plan.frames
    who = person(seed, plan.person)
    if plan.fault != "second_face":
        return [_Role(who=who, states=states)], signals
    listener, _ = act(seed, HELD_OUT + plan.clip, closed(mouth), manner)
    return [
        _Role(who=who, states=states, aside=_ASIDE),
        _Role(who=person(seed, plan.person + 1), states=listener, aside=-_ASIDE),
    ], signals


def _scenery(seed: int, plan: ClipPlan, number: int) -> Scenery:
    return scenery(seed, number, kind=plan.scenery_kind, moving=plan.moving_scenery and plan.fault != "still")


def _after_cut(seed: int, plan: ClipPlan) -> tuple[Person, Scenery]:
    """Who and what is seen after the cut of a clip that has one."""
    return person(seed, plan.person + 2), _scenery(seed, plan, plan.scenery + 1)


def _draw(seed: int, plan: ClipPlan, roles: list[_Role], scene: Scenery) -> tuple[np.ndarray, list[DrawnFigure]]:
    framing = FRAMINGS[plan.framing]
    height, width = picture_size(plan.aspect, plan.height_px)
    drift = 0.0 if plan.fault == "still" else plan.drift
    view = camera(seed, plan.clip, framing, (height, width), plan.frames, drift=drift)
    stage = PuppetStage(height, width, plan.style)
    blur = _BLUR * height if plan.fault == "blur" else 0.0
    frames, drawn = np.empty((plan.frames, height, width, 3), np.uint8), []
    after = _after_cut(seed, plan)
    for t in range(plan.frames):
        second_shot = plan.fault == "cut" and t >= shots(plan)[1][0]
        now = after[1] if second_shot else scene
        stage.background(now, t)
        figures = [
            stage.figure(after[0] if second_shot else role.who, role.states[t], framing, _place(view, t, role, width))
            for role in reversed(roles)
        ]
        stage.light(now)
        frames[t] = stage.picture(blur)
        drawn.append(figures[-1])
    return frames, drawn


def _place(view: Camera, t: int, role: _Role, width: int) -> Place:
    return Place(x=float(view.x_T[t]) + role.aside * width, y=float(view.y_T[t]), scale=float(view.scale_T[t]))
