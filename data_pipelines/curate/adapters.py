"""What a user gives beside the packaged networks, or in their place: networks by path, and a program that captions."""

import argparse
import dataclasses
from collections.abc import Mapping

from data_pipelines.curate import clip_networks, onnx_networks
from data_pipelines.curate.caption_command import TIMEOUT_S, CaptionCommand
from data_pipelines.curate.clip_networks import ClipNetwork
from data_pipelines.curate.embeddings import EmbeddingNetwork
from data_pipelines.curate.person_network import PersonNetwork
from data_pipelines.curate.sync_network import SyncNetwork
from data_pipelines.curate.whole_body_network import PersonFinder, WholeBodyNetwork


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """Looked at and found to be what they should be.

    scorers: name of a score -> what gives it (`clip_networks.py`).
    finder: what finds body and hands in place of MediaPipe (`whole_body_network.py`).
    embedding: what gives a vector of a clip (`embeddings.py`).
    sync: what says whether lips follow the sound (`sync_network.py`).
    captions: what captions videos that have no caption (`caption_command.py`).
    device: where networks run (`onnx_networks.DEVICES`).
    gpus: the share of a GPU that a task which runs networks asks for.
    """

    scorers: Mapping[str, ClipNetwork] = dataclasses.field(default_factory=dict)
    finder: PersonFinder | None = None
    embedding: EmbeddingNetwork | None = None
    sync: SyncNetwork | None = None
    captions: CaptionCommand | None = None
    device: str = "cpu"
    gpus: float = 0.0


NO_ADAPTERS = Adapters()


@dataclasses.dataclass(kw_only=True, slots=True)
class AdapterOptions:
    """Paths of networks, and a command.

    networks: name of a score -> path of the network that gives it.
    person_network, pose_network: paths of YOLOX and of RTMPose or DWPose, both or neither; "": none.
    embedding_network: path of the network that gives a vector of a clip; "": none.
    sync_network: path of SyncNet; "": none.
    caption_command: as for a shell, with `{video}` in it; "": none.
    caption_timeout_s: after it a caption is given up.
    network_device: `cpu`, or `cuda`: the packaged network that finds text, too, but not MediaPipe's.
    network_gpus: with `cuda`, the share of a GPU that a task which runs networks asks Ray for.
    """

    networks: dict[str, str] = dataclasses.field(default_factory=dict)
    person_network: str = ""
    pose_network: str = ""
    embedding_network: str = ""
    sync_network: str = ""
    caption_command: str = ""
    caption_timeout_s: float = TIMEOUT_S
    network_device: str = "cpu"
    network_gpus: float = 1.0

    def load(self) -> Adapters:
        """Raises:
        FileNotFoundError, ValueError, ImportError: one of them is not there, or not what it should be.
        """
        if bool(self.person_network) != bool(self.pose_network):
            given, lacking = ("person", "pose") if self.person_network else ("pose", "person")
            raise ValueError(f"--{given}-network finds nothing without --{lacking}-network; give both, or neither")
        if self.network_device not in onnx_networks.DEVICES:
            known = ", ".join(onnx_networks.DEVICES)
            raise ValueError(f"network_device must be one of {known}, not {self.network_device!r}")
        share = self.network_gpus
        if share <= 0 or (share > 1 and share != int(share)):
            raise ValueError(f"network_gpus must be greater than 0, and whole above 1, not {share}")
        if share != 1 and self.network_device == "cpu":
            raise ValueError(f"network_gpus {share} is of network_device cuda; give both, or neither")
        finder, command = None, self.caption_command
        if self.person_network:
            finder = PersonFinder(
                person=PersonNetwork.load(self.person_network), pose=WholeBodyNetwork.load(self.pose_network)
            )
        return Adapters(
            scorers=clip_networks.load_all(self.networks),
            finder=finder,
            embedding=EmbeddingNetwork.load(self.embedding_network) if self.embedding_network else None,
            sync=SyncNetwork.load(self.sync_network) if self.sync_network else None,
            captions=CaptionCommand.parse(command, self.caption_timeout_s) if command else None,
            device=self.network_device,
            gpus=self.network_gpus if self.network_device == "cuda" else 0.0,
        )

    def take(self, arguments: argparse.Namespace) -> None:
        """Of the command line, over what is there."""
        self.networks = {**self.networks, **clip_networks.parse(arguments.network)}
        for name in (
            "person_network", "pose_network", "embedding_network", "sync_network", "caption_command",
            "caption_timeout_s", "network_device", "network_gpus",
        ):  # fmt: skip
            if getattr(arguments, name) is not None:
                setattr(self, name, getattr(arguments, name))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `AdapterOptions.take` reads."""
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="NAME=PATH.onnx",
        help=f"a network that scores clips ({', '.join(clip_networks.NAMES)}); may be repeated; what it is shown is in"
        " PATH.json (docs/data.md)",
    )
    parser.add_argument(
        "--person-network",
        metavar="PATH.onnx",
        help="YOLOX in ONNX, which finds people for --pose-network (docs/data.md)",
    )
    parser.add_argument(
        "--pose-network",
        metavar="PATH.onnx",
        help="RTMPose or DWPose of 133 points in ONNX, for body and hands in place of MediaPipe's (docs/data.md)",
    )
    parser.add_argument(
        "--embedding-network",
        metavar="PATH.onnx",
        help="a network that gives a vector of a clip's thumbnail, for the threshold max_similarity; what it is"
        " shown is in PATH.json (docs/data.md)",
    )
    parser.add_argument(
        "--sync-network",
        metavar="PATH.onnx",
        help="SyncNet in ONNX, for min_syncnet_confidence, max_syncnet_distance and max_syncnet_offset_s"
        " (docs/data.md)",
    )
    parser.add_argument(
        "--caption-command",
        metavar="'CMD {video} ...'",
        help="a program that prints the caption of a clip, for videos without one; {video}, {start_s} and {end_s} are"
        " filled in, no shell is used (docs/data.md)",
    )
    parser.add_argument(
        "--caption-timeout-s",
        type=float,
        metavar="S",
        help=f"seconds after which a caption is given up (default {TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--network-device",
        choices=onnx_networks.DEVICES,
        help="where ONNX networks run; cuda needs onnxruntime-gpu, and makes rows of their own (default: cpu)",
    )
    parser.add_argument(
        "--network-gpus",
        type=float,
        metavar="SHARE",
        help="with cuda and --engine ray, the share of a GPU that a task which runs networks asks for: 0.25 lets four"
        " share one (default 1)",
    )
