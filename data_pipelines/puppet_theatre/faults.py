"""What is wrong with a clip on purpose, and which conditions it may no longer train."""

import dataclasses

from omnihuman_jax.conditions import Condition

_A, _P = Condition.AUDIO, Condition.POSE
_ALL = frozenset(Condition)
_OUT_OF_SYNC = ("lips do not follow the sound (phone proxy)", "sound and lips apart (phone proxy)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """`spoils` the conditions that a clip with it is not eligible for, whatever else is right about it.

    clear: whoever looks and listens says at once whether it is there. Of a delay that depends on how long it is, and of
    half a line on which half: those are scored by a curve.
    told_by: the reasons of curate (`tagging.CHECKS`) that name this fault, or what follows from it; none where it is
    allowed.
    """

    name: str
    what: str
    told_by: tuple[str, ...] = ()
    spoils: frozenset[Condition] = frozenset()
    clear: bool = True


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault(name="none", what="speech in sync with the mouth"),
        Fault(name="dubbed", what="the sound is another line", told_by=_OUT_OF_SYNC, spoils=frozenset({_A})),
        Fault(
            name="partly_dubbed",
            what="the second half of the sound is another line",
            told_by=_OUT_OF_SYNC,
            spoils=frozenset({_A}),
            clear=False,
        ),
        Fault(
            name="late",
            what="the sound comes 0.28 to 0.8 s after the picture",
            told_by=_OUT_OF_SYNC,
            spoils=frozenset({_A}),
            clear=False,
        ),
        Fault(
            name="early",
            what="the sound comes 0.28 to 0.8 s before the picture",
            told_by=_OUT_OF_SYNC,
            spoils=frozenset({_A}),
            clear=False,
        ),
        Fault(name="slightly_late", what="the sound comes 0.08 to 0.2 s after the picture: allowed", clear=False),
        Fault(name="slightly_early", what="the sound comes 0.08 to 0.2 s before the picture: allowed", clear=False),
        Fault(
            name="off_screen",
            what="someone else speaks, the mouth stays closed",
            told_by=_OUT_OF_SYNC,
            spoils=frozenset({_A}),
        ),
        Fault(
            name="music",
            what="the mouth speaks, the sound is music",
            told_by=("too little speech", *_OUT_OF_SYNC),
            spoils=frozenset({_A}),
        ),
        Fault(
            name="silent",
            what="the mouth speaks, the sound track is silent",
            told_by=("silent",),
            spoils=frozenset({_A}),
        ),
        Fault(
            name="no_track",
            what="the mouth speaks, there is no sound track",
            told_by=("no audio track",),
            spoils=frozenset({_A}),
        ),
        Fault(
            name="covered",
            what="a mask covers the mouth",
            told_by=("face not seen throughout", *_OUT_OF_SYNC),
            spoils=frozenset({_A}),
        ),
        Fault(
            name="second_face",
            what="a second person in the picture, silent",
            told_by=("more than one face",),
            spoils=frozenset({_A}),
        ),
        Fault(
            name="turned_away",
            what="seen from behind",
            told_by=("face not seen throughout", "face not seen", "body seen unclearly", "body not seen throughout"),
            spoils=frozenset({_A, _P}),
        ),
        Fault(name="hands_hidden", what="both arms behind the back: allowed, hands are not required"),
        Fault(name="hands_out", what="the picture ends above the hands: allowed"),
        Fault(name="cut", what="another person and place from the middle on; each half is a clip of its own"),
        Fault(
            name="still",
            what="a still picture under speech",
            told_by=("frozen picture", "hardly any motion"),
            spoils=_ALL,
        ),
        Fault(name="blur", what="out of focus", told_by=("blurred",), spoils=_ALL),
    )
}
# Of those whose sound comes at another time: seconds that it is late.
DELAYS: dict[str, tuple[float, float]] = {
    "late": (0.28, 0.8),
    "early": (-0.8, -0.28),
    "slightly_late": (0.08, 0.2),
    "slightly_early": (-0.2, -0.08),
}
