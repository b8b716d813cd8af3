"""Who is on the stage: a person is a pure function of (seed, number)."""

import dataclasses

from data_pipelines.puppet_theatre.colours import Colour, hsv, mix, times
from data_pipelines.puppet_theatre.randomness import generator

_SKINS: tuple[Colour, ...] = (
    (255, 224, 196), (241, 194, 155), (224, 172, 125), (198, 134, 88), (141, 85, 54), (92, 57, 40), (250, 210, 180),
    (170, 110, 72),
)  # fmt: skip
_HAIRS: dict[str, Colour] = {
    "black": (30, 22, 18), "dark brown": (70, 42, 24), "brown": (120, 78, 40), "blond": (190, 150, 90),
    "red": (150, 60, 30), "grey": (110, 110, 112), "white": (225, 215, 190),
}  # fmt: skip
HAIRCUTS = ("short", "long", "bob", "cropped")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Colours and proportions; lengths in head heights, places from the centre of the head, y downwards."""

    number: int
    skin: Colour
    lip: Colour
    hair: Colour
    hair_name: str
    haircut: str
    eye: Colour
    shirt: Colour
    trousers: Colour
    face_width: float
    jaw: float
    chin: float
    eye_x: float
    eye_y: float
    eye_size: float
    brow: float
    nose: float
    mouth_y: float
    mouth_width: float
    lip_height: float
    shoulder: float
    arm: float
    glasses: bool
    beard: bool

    @property
    def colours(self) -> dict[str, Colour]:
        """What makes this person known again."""
        return {"skin": self.skin, "hair": self.hair, "eye": self.eye, "lip": self.lip, "shirt": self.shirt}


def person(seed: int, number: int) -> Person:
    """Person `number` of the world `seed`."""
    random = generator(seed, "person", number)
    first, second = (_SKINS[random.integers(len(_SKINS))] for _ in range(2))
    skin = mix(first, second, random.uniform(0, 0.5))
    hair_name = list(_HAIRS)[random.integers(len(_HAIRS))]
    return Person(
        number=number,
        skin=skin,
        lip=mix(times(skin, 0.8), (190, 50, 60), random.uniform(0.25, 0.6)),
        hair=times(_HAIRS[hair_name], random.uniform(0.85, 1.15)),
        hair_name=hair_name,
        haircut=HAIRCUTS[random.integers(len(HAIRCUTS))],
        eye=hsv(random.uniform(0, 0.65), random.uniform(0.3, 0.7), random.uniform(0.25, 0.6)),
        shirt=hsv(random.uniform(), random.uniform(0.2, 0.8), random.uniform(0.25, 0.85)),
        trousers=hsv(random.uniform(), random.uniform(0.1, 0.5), random.uniform(0.15, 0.5)),
        face_width=random.uniform(0.70, 0.80),
        jaw=random.uniform(0.62, 0.82),
        chin=random.uniform(0.47, 0.53),
        eye_x=random.uniform(0.155, 0.185),
        eye_y=random.uniform(-0.06, -0.02),
        eye_size=random.uniform(0.9, 1.15),
        brow=random.uniform(0.012, 0.03),
        nose=random.uniform(0.9, 1.15),
        mouth_y=random.uniform(0.255, 0.285),
        mouth_width=random.uniform(0.125, 0.155),
        lip_height=random.uniform(0.02, 0.034),
        shoulder=random.uniform(0.72, 0.84),
        arm=random.uniform(0.88, 1.0),
        glasses=bool(random.uniform() < 0.2),
        beard=bool(random.uniform() < 0.2),
    )
