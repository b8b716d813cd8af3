"""What a caption says of a clip: what can be seen, in words that vary."""

from data_pipelines.puppet_theatre.people import Person
from data_pipelines.puppet_theatre.programme import ClipPlan
from data_pipelines.puppet_theatre.randomness import generator

_VIEWS = {
    "close": "A very close view of", "face": "A close view of", "bust": "Head and shoulders of",
    "half": "A half-length view of", "full": "A full-length view of",
}  # fmt: skip
_STYLES = {"flat": "a flat cartoon of ", "shaded": "", "line": "an ink drawing of "}
_PLACES = {"plain": "a plain wall", "calm": "a quiet background", "busy": "a busy background"}


def caption(seed: int, plan: ClipPlan, who: Person) -> str:
    """One sentence in English."""
    random = generator(seed, "caption", plan.clip)
    extras = ["glasses"] * who.glasses + ["a beard"] * who.beard
    look = f"a person with {who.haircut} {who.hair_name} hair" + "".join(f" and {extra}" for extra in extras)
    if plan.fault == "turned_away":
        deed = "stands with the back to the camera"
    elif plan.fault == "off_screen":
        deed = "listens"
    else:
        deed = ("talks to the camera", "speaks", "is talking")[random.integers(3)]
    place = f" in front of {_PLACES[plan.scenery_kind]}" if random.uniform() < 0.7 else ""
    return f"{_VIEWS[plan.framing]} {_STYLES[plan.style]}{look} who {deed}{place}."
