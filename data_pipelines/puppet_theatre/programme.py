"""What is played: a clip's plan is a pure function of (seed, clip index, programme, cast)."""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.puppet_theatre.faults import DELAYS
from data_pipelines.puppet_theatre.randomness import generator
from data_pipelines.puppet_theatre.voices import NEURAL, Cast
from omnihuman_jax.typing import FPS

# Numbers of people and places from here on are never seen in training.
HELD_OUT = 1_000_000
TRAIN = "train"
# split -> (its share, unseen face and place, unseen speech, unseen speaker)
SPLITS: dict[str, tuple[float, bool, bool, bool]] = {
    TRAIN: (0.80, False, False, False),
    "unseen_face": (0.04, True, False, False),
    "unseen_speech": (0.04, False, True, False),
    "unseen_face_and_speech": (0.08, True, True, False),
    "unseen_speaker": (0.04, True, True, True),
}
Weights = Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How clips of a kind look. Weights need not sum to 1.

    people      how many take turns, and how many places
    liveliness  range of `Manner.liveliness`; facing the widest turn of the head; drift the most a camera moves
    """

    people: int
    styles: Weights
    framings: Weights
    aspects: Weights
    scenery: Weights
    moving_scenery: float
    liveliness: tuple[float, float]
    facing: float
    drift: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Programme:
    """`strong_share` of the clips are calm, in sync and whole; the others are `weak`, with a fault out of `faults`.

    held_out_strong_share: of the clips that are held out from training, where it is another one: lips can be measured
    on strong clips alone.
    """

    what: str
    strong_share: float
    strong: Look
    weak: Look
    faults: Weights
    seconds: tuple[float, float] = (5.6, 8.0)
    short_side: int = 256
    held_out_strong_share: float | None = None

    def share_of_strong(self, split: str) -> float:
        return self.strong_share if split == TRAIN or self.held_out_strong_share is None else self.held_out_strong_share


_CALM = Look(
    people=12,
    styles={"shaded": 1},
    framings={"bust": 1, "half": 2},
    aspects={"square": 2, "portrait": 1},
    scenery={"plain": 2, "calm": 1},
    moving_scenery=0.0,
    liveliness=(0.4, 0.7),
    facing=0.0,
    drift=0.0,
)
_LIVELY = Look(
    people=400,
    styles={"shaded": 3, "flat": 2, "line": 1},
    framings={"face": 2, "bust": 2, "half": 3, "full": 2},
    aspects={"square": 1, "landscape": 1, "portrait": 1},
    scenery={"plain": 1, "calm": 2, "busy": 3},
    moving_scenery=0.6,
    liveliness=(0.8, 1.8),
    facing=0.8,
    drift=1.0,
)
_CLOSE = dataclasses.replace(
    _CALM,
    people=128,
    framings={"close": 1},
    aspects={"square": 1},
    scenery={"plain": 1, "calm": 1},
    liveliness=(0.4, 0.8),
)
_CLOSE_BEFORE_LIVELY_SCENERY = dataclasses.replace(_CLOSE, scenery={"calm": 1, "busy": 2}, moving_scenery=0.7)
_HALF = dataclasses.replace(
    _CALM,
    people=400,
    framings={"half": 1},
    aspects={"portrait": 1},
    scenery={"plain": 1, "calm": 1},
    liveliness=(0.6, 1.6),
)
_EVERY_LOOK = dataclasses.replace(
    _CALM,
    people=400,
    styles={"shaded": 1, "flat": 1, "line": 1},
    framings={"close": 1, "face": 1, "bust": 1, "half": 1, "full": 1},
    aspects={"square": 1, "portrait": 1, "landscape": 1},
    scenery={"plain": 1, "calm": 1, "busy": 1},
    liveliness=(0.5, 1.2),
)
_WEAK_FAULTS = {
    "dubbed": 3, "partly_dubbed": 1, "late": 2, "early": 2, "off_screen": 3, "music": 2, "silent": 2, "no_track": 2,
    "covered": 1, "second_face": 1, "turned_away": 1, "cut": 1,
}  # fmt: skip

PROGRAMMES: dict[str, Programme] = {
    "biased": Programme(
        what="as real footage: 13 % calm, frontal, in sync, few people; the rest lively, varied, for weaker conditions",
        strong_share=0.13,
        strong=_CALM,
        weak=_LIVELY,
        faults=_WEAK_FAULTS,
    ),
    "faces": Programme(
        what="close-ups in sync, one person each: for configs/theatre.py",
        strong_share=1.0,
        strong=_CLOSE,
        weak=_CLOSE,
        faults={"dubbed": 1, "silent": 1, "off_screen": 1},
        seconds=(7.0, 10.0),
        short_side=128,
    ),
    "lively_scenery": Programme(
        what="the same close-ups before busy scenery that moves in most of them: for long videos",
        strong_share=1.0,
        strong=_CLOSE_BEFORE_LIVELY_SCENERY,
        weak=_CLOSE_BEFORE_LIVELY_SCENERY,
        faults={"dubbed": 1},
        seconds=(7.0, 10.0),
        short_side=128,
    ),
    "biased_faces": Programme(
        what="close-ups, a quarter calm, in sync, of few people; the rest lively, varied, without usable sound",
        strong_share=0.25,
        strong=dataclasses.replace(_CLOSE, people=24),
        weak=dataclasses.replace(_LIVELY, framings={"close": 1}, aspects={"square": 1}),
        faults={"dubbed": 3, "off_screen": 3, "music": 2, "silent": 2, "no_track": 2},
        seconds=(7.0, 10.0),
        short_side=128,
        held_out_strong_share=1.0,
    ),
    "bodies": Programme(
        what="half-length figures whose arms move, heads too small for audio: for learning to be driven by pose",
        strong_share=1.0,
        strong=_HALF,
        weak=_HALF,
        faults={"dubbed": 1},
        short_side=128,
    ),
    "speaking_bodies": Programme(
        what="the same figures, drawn large enough for audio too: for gestures, and lips, under sound alone",
        strong_share=1.0,
        strong=_HALF,
        weak=_HALF,
        faults={"dubbed": 1},
        seconds=(7.0, 10.0),
        # A face is 0.19 of the picture's height wide: 53 pixels, where `min_face_px` is 48.
        short_side=224,
    ),
    "looks": Programme(
        what="every style and framing as often as every other, in sync: for how well curate sees them",
        strong_share=1.0,
        strong=_EVERY_LOOK,
        weak=_EVERY_LOOK,
        faults={"dubbed": 1},
    ),
    "faults": Programme(
        what="every fault as often as every other, on figures that a filter can judge: for scoring the tags of curate",
        strong_share=0.0,
        strong=_CALM,
        weak=dataclasses.replace(
            _CALM,
            people=400,
            styles={"shaded": 2, "flat": 1},
            aspects={"square": 1, "portrait": 1, "landscape": 1},
            scenery={"plain": 1, "calm": 1, "busy": 1},
            moving_scenery=0.3,
            liveliness=(0.5, 1.2),
            facing=0.3,
            drift=0.3,
        ),
        faults={
            "none": 3, "dubbed": 1, "partly_dubbed": 1, "late": 1, "early": 1, "slightly_late": 1, "slightly_early": 1,
            "off_screen": 1, "music": 1, "silent": 1, "no_track": 1, "covered": 1, "second_face": 1, "turned_away": 1,
            "hands_hidden": 1, "hands_out": 1, "cut": 1, "still": 1, "blur": 1,
        },
        seconds=(7.0, 8.0),
        # At 256 the face of a half-length figure is 48 to 51 pixels wide: at the very border of `min_face_px`.
        short_side=320,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlan:
    """Everything that is decided about a clip before it is drawn; plain values."""

    clip: int
    split: str
    strong: bool
    frames: int
    height_px: int
    person: int
    style: str
    framing: str
    aspect: str
    scenery: int
    scenery_kind: str
    moving_scenery: bool
    drift: float
    liveliness: float
    facing: float
    voice: str
    held_out_speech: bool
    fault: str
    delay_s: float

    @property
    def name(self) -> str:
        return f"theatre-{self.clip:06d}"


def plan_clip(seed: int, clip: int, programme: Programme, cast: Cast) -> ClipPlan:
    """The plan of clip number `clip`."""
    random = generator(seed, "plan", clip)
    strength = random.uniform()
    split = _split(random, cast)
    strong = bool(strength < programme.share_of_strong(split))
    look = programme.strong if strong else programme.weak
    _, new_face, new_speech, new_speaker = SPLITS[split]
    fault = "none" if strong else _pick(random, programme.faults)
    lively = random.uniform(*look.liveliness)
    framing = _pick(random, look.framings)
    voice = _voice(random, cast.held_out if new_speaker else cast.training)
    return ClipPlan(
        clip=clip,
        split=split,
        strong=strong,
        frames=round(random.uniform(*programme.seconds) * FPS),
        height_px=programme.short_side,
        person=_number(random, look.people, unseen=new_face),
        style=_pick(random, look.styles),
        framing={"hands_hidden": "half", "hands_out": "bust"}.get(fault, framing),
        aspect=_pick(random, look.aspects),
        scenery=_number(random, look.people, unseen=new_face),
        scenery_kind=_pick(random, look.scenery),
        moving_scenery=bool(random.uniform() < look.moving_scenery),
        drift=look.drift * random.uniform(0, 1),
        liveliness=lively,
        facing=look.facing * random.uniform(-1, 1),
        voice=voice,
        held_out_speech=new_speech,
        fault=fault,
        delay_s=round(random.uniform(*DELAYS.get(fault, (0.0, 0.0))) * FPS) / FPS,
    )


def _split(random: np.random.Generator, cast: Cast) -> str:
    """Drawn by share; the speaker's split needs a speaker who is held out."""
    split = _pick(random, {name: share for name, (share, *_) in SPLITS.items()})
    return "unseen_face_and_speech" if SPLITS[split][3] and not cast.held_out else split


def _voice(random: np.random.Generator, voices: tuple[str, ...]) -> str:
    """The neural voice, whose phones are known exactly, in half of the clips; the recorded ones share the rest."""
    others = [voice for voice in voices if voice != NEURAL]
    if NEURAL in voices and (not others or random.uniform() < 0.5):
        return NEURAL
    return others[random.integers(len(others))]


def _number(random: np.random.Generator, pool: int, *, unseen: bool) -> int:
    number = int(random.integers(pool))
    return HELD_OUT + number if unseen else number


def _pick(random: np.random.Generator, weights: Weights) -> str:
    names, numbers = list(weights), np.array(list(weights.values()), np.float64)
    return names[int(random.choice(len(names), p=numbers / numbers.sum()))]


def fingerprint(programme: Programme) -> int:
    """Changes with anything in the programme."""
    # What is None says nothing: a theatre of before there was such a field can still be made longer.
    said = {field.name: getattr(programme, field.name) for field in dataclasses.fields(programme)}
    words = ", ".join(f"{name}={value!r}" for name, value in said.items() if value is not None)
    return zlib.crc32(f"Programme({words})".encode())
