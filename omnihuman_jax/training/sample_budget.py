"""When a run shows what it has learnt: the config of its samples, and the share of its time that they may take."""

import dataclasses
import logging

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, slots=True)
class SamplesConfig:
    """Samples and evaluations while a run trains, with the averaged weights; none of them changes a bit of it.

    interval: steps from one round to the next, a multiple of `logging.interval`; 0: no rounds
    windows: windows of the data set that are sampled, spread over its clips
    split: of the windows, as the catalog has it; "": held-out ones where there are any, else those trained on
    clips: folder of `omnihuman curate` that the data set was encoded from: the windows' sound; "": silent videos
    signals: folder of driving signals: NAME.png, .jpg or .heic, and NAME.wav or .mp3, NAME.npz (pose), NAME.txt
    gain_windows: windows on which the gain of audio and of pose is measured; 0: it is not
    truth: folder `truth` of `omnihuman theatre`: the correlation of mouths with the truth is measured; "": it is not
    mouth_windows: on how many windows
    steps: of the sampler; 0: `sampling.num_steps`
    guidance_scale: on text and audio; 0: the curve of `sampling.guidance`
    batch: windows a call, rounded up to what the mesh splits
    seed: of the noise, the same in every round
    max_share: of the time since the first step; a round that would go beyond it is left out, with a word
    """

    interval: int = 0
    windows: int = 4
    split: str = ""
    clips: str = ""
    signals: str = ""
    gain_windows: int = 16
    truth: str = ""
    mouth_windows: int = 24
    steps: int = 0
    guidance_scale: float = 0.0
    batch: int = 8
    seed: int = 0
    max_share: float = 0.05

    def validate(self) -> None:
        """ValueError on a number that no round can be made with."""
        for name in ("interval", "windows", "gain_windows", "mouth_windows", "steps", "guidance_scale", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"samples.{name} must be >= 0, not {getattr(self, name)}")
        if self.batch < 1:
            raise ValueError(f"samples.batch must be >= 1, not {self.batch}")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"samples.max_share must be in (0, 1], not {self.max_share}")

    def check_interval(self, logged: int) -> None:
        """ValueError unless a round falls on a line of metrics, which carries its numbers; `logged`: the interval."""
        if self.interval % logged:
            raise ValueError(
                f"samples.interval {self.interval} must be a multiple of logging.interval {logged}: a round's numbers "
                f"stand in the line of its step; set it to {max(1, round(self.interval / logged)) * logged}"
            )


class SampleBudget:
    """Keeps rounds below a share of the time since the first step; process 0 alone decides.

    Args:
        max_share: of that time.
        now: seconds on any clock, when the first step begins.
    """

    def __init__(self, max_share: float, now: float):
        self._max_share, self._began = max_share, now
        self._spent, self._last, self._told = 0.0, 0.0, False

    def allows(self, now: float) -> bool:
        """Whether a round as long as the last one stays within the share; the first is always allowed."""
        share = (self._spent + self._last) / max(now - self._began + self._last, 1e-9)
        if self._last == 0.0 or share <= self._max_share:
            return True
        if not self._told:
            self._told = True
            logger.warning(
                "a round of samples takes %.1f s, with it they would be %.1f %% of the time: left out until they are "
                "%.1f %% at most (samples.max_share); raise samples.interval, or lower samples.steps or windows",
                self._last, 100 * share, 100 * self._max_share,
            )  # fmt: skip
        return False

    def spend(self, seconds: float) -> None:
        """A round took so long."""
        self._spent, self._last = self._spent + seconds, seconds
