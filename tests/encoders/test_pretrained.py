"""Folders in Hugging Face layout: what is read, what is refused, and what the error says."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnihuman_jax.encoders.pretrained import open_pretrained
from omnihuman_jax.encoders.speech import load_speech_encoder
from omnihuman_jax.encoders.text import load_text_encoder
from omnihuman_jax.serving.folders_omnihuman import changed_files, check_weights
from tests.encoders import tiny_networks


def test_sha256_of_every_file_that_is_read_is_recorded(tmp_path):
    text = load_text_encoder(tiny_networks.write_bert(tmp_path / "bert"))
    speech = load_speech_encoder(tiny_networks.write_whisper(tmp_path / "whisper"))
    for encoder, name in ((text, "bert"), (speech, "whisper")):
        files = sorted((tmp_path / name).iterdir())
        assert {"model.safetensors", "config.json"} <= {file.name for file in files}
        assert encoder.sha256 == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        assert encoder.ref == str(tmp_path / name)
    assert "tokenizer.json" in text.sha256


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "modules.json", "tokenizer.json"])
def test_a_changed_or_new_description_is_another_network_on_both_sides(tmp_path, name):
    """Weights alone do not say how sound is normalised, latents are scaled or text is cut: both readers see it."""
    folder = tiny_networks.write_bert(tmp_path / "bert")
    if name != "preprocessor_config.json":  # that one is new
        (folder / name).write_bytes((folder / name).read_bytes() if (folder / name).is_file() else b"[]")
    recorded = open_pretrained(folder).sha256()
    assert not changed_files(recorded, open_pretrained(folder).sha256())
    check_weights("text encoder", folder, recorded)
    old = (folder / name).read_bytes() if (folder / name).is_file() else b"{}"
    (folder / name).write_bytes(old + b" ")
    found = open_pretrained(folder).sha256()
    assert changed_files(recorded, found) == [name]
    with pytest.raises(
        ValueError, match=rf"not the text encoder that .* \({name} (is another file|was not there then)\)"
    ):
        check_weights("text encoder", folder, recorded)
    before = {"model.safetensors": recorded["model.safetensors"]}  # of a dataset that recorded weights alone
    assert not changed_files(before, found)
    check_weights("text encoder", folder, before)
    assert changed_files(before | {"config.json": "0"}, found)


def test_ref_is_absolute(tmp_path, monkeypatch):
    tiny_networks.write_bert(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    assert open_pretrained("bert").ref == str(tmp_path / "bert")


@pytest.mark.parametrize("load", [load_text_encoder, load_speech_encoder])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_opened(tmp_path, load, name):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write = tiny_networks.write_bert if load is load_text_encoder else tiny_networks.write_whisper
    folder = write(tmp_path / "network")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=rf"{name} is a pickle, which is refused.*save_pretrained") as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_ignored(tmp_path):
    folder = tiny_networks.write_bert(tmp_path / "bert")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_text_encoder(folder).width == 16


def test_sharded_weights_are_read(tmp_path):
    folder = tiny_networks.write_whisper(tmp_path / "whisper")
    whole = load_speech_encoder(folder).features(tiny_networks.wave(0.4), 10)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors := tiny_networks.whisper_tensors())
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    encoder = load_speech_encoder(folder)
    np.testing.assert_array_equal(encoder.features(tiny_networks.wave(0.4), 10), whole)
    assert sorted(name for name in encoder.sha256 if name.endswith(".safetensors")) == sorted(parts)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    folder = tiny_networks.write_whisper(tmp_path / "whisper")
    save_file(
        {k: v.astype(np.float16) for k, v in tiny_networks.whisper_tensors().items()}, folder / "model.safetensors"
    )
    assert {tensor.dtype for tensor in open_pretrained(folder).tensors("").values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["no/such/folder/at-all", "/no/such", "no-such"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
        open_pretrained(name)


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def unreachable(repo, allow_patterns):
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        FileNotFoundError,
        match=r"^someone/model: no such folder, .* hub \(no route to host\); give a folder .* id$",
    ):
        open_pretrained("someone/model")


def test_a_hub_id_is_downloaded_and_keeps_its_name(monkeypatch, tmp_path):
    import huggingface_hub

    folder = tiny_networks.write_bert(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, allow_patterns: str(folder))
    assert load_text_encoder("someone/model").ref == "someone/model"


def test_a_folder_of_a_hub_repository(monkeypatch, tmp_path):
    import huggingface_hub

    folder = tiny_networks.write_bert(tmp_path / "text_encoder")

    def download(repo, allow_patterns):
        assert repo == "someone/pipeline" and all(pattern.startswith("text_encoder/") for pattern in allow_patterns)
        return str(folder.parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_text_encoder("someone/pipeline/text_encoder").ref == "someone/pipeline/text_encoder"


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "JSON object")])
def test_a_damaged_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        open_pretrained(tmp_path)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing"):
        open_pretrained(tmp_path)


def test_missing_config_keys_are_named(tmp_path):
    folder = tiny_networks.write_whisper(tmp_path / "whisper")
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper", "d_model": 16}))
    with pytest.raises(ValueError, match=r"no encoder_layers, encoder_attention_heads"):
        load_speech_encoder(folder)
