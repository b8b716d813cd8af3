"""Makes `encoder_goldens.npz`: what `transformers` computes with the tiny networks. Run when they change.

    pip install transformers==5.23.0 torch
    python -m tests.encoders.make_encoder_goldens

With the folders of the sample networks it makes `sample_encoder_goldens.npz` instead, and prints how far ours are from
them:

    python -m tests.encoders.make_encoder_goldens --text-encoder DIR --speech-encoder DIR
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertModel, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.encoders import tiny_networks


def text_states(folder: Path, texts: tuple[str, ...], max_tokens: int) -> list[np.ndarray]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = BertModel.from_pretrained(folder).eval()
    states = []
    for text in texts:
        # The words are the tokenizer library's on both sides; what the network makes of them is what is compared.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.enable_truncation(max_tokens)
        ids = torch.tensor([tokenizer.backend_tokenizer.encode(text).ids])
        with torch.no_grad():
            states.append(model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy())
    return states


def speech_states(folder: Path, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-mel [3000, bins], hidden states [layers + 1, 1500, width]) of one window of 30 s."""
    config = WhisperConfig.from_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    mel = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
    model = WhisperEncoder(config).eval()
    model.load_state_dict(
        {k.removeprefix("model.encoder."): v for k, v in load_file(folder / "model.safetensors").items()}
    )
    with torch.no_grad():
        states = model(mel, output_hidden_states=True).hidden_states
    return mel[0].numpy().T, np.stack([state[0].numpy() for state in states])


def compare(text_encoder: Path, speech_encoder: Path) -> None:
    from omnihuman_jax.encoders import whisper
    from omnihuman_jax.encoders.speech import load_speech_encoder
    from omnihuman_jax.encoders.text import load_text_encoder

    texts = tiny_networks.REAL_TEXTS
    reference_text = text_states(text_encoder, texts, 64)
    for text, mine, theirs in zip(
        texts, load_text_encoder(text_encoder).encode(texts, 64).tokens, reference_text, strict=True
    ):
        print(f"text {text!r}: largest difference {np.abs(mine - theirs).max():.2e} of {np.abs(theirs).max():.2f}")
    encoder = load_speech_encoder(speech_encoder)
    sound = tiny_networks.wave(9.0)
    _, reference_speech = speech_states(speech_encoder, sound)
    reference_speech[0] -= encoder.params["positions"]  # ours leaves them out of layer 0
    states = whisper.hidden_states(encoder.config, encoder.params, sound, tuple(range(len(reference_speech))))
    for layer, (mine, theirs) in enumerate(zip(states, reference_speech[:, : states.shape[1]], strict=True)):
        print(
            f"speech layer {layer}: largest difference {np.abs(mine - theirs).max():.2e} of {np.abs(theirs).max():.2f}"
        )
    kept = {f"text_{index}": states[:, ::16] for index, states in enumerate(reference_text)}
    np.savez_compressed(tiny_networks.REAL_GOLDENS, speech=reference_speech[:, : states.shape[1] : 40, ::16], **kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-encoder", type=Path)
    parser.add_argument("--speech-encoder", type=Path)
    options = parser.parse_args()
    if options.text_encoder and options.speech_encoder:
        compare(options.text_encoder, options.speech_encoder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        texts = text_states(tiny_networks.write_bert(Path(scratch) / "bert"), tiny_networks.TEXTS, 32)
        mel, states = speech_states(tiny_networks.write_whisper(Path(scratch) / "whisper"), tiny_networks.wave(30.0))
    arrays = {f"text_{index}": array for index, array in enumerate(texts)}
    kept = {"mel": mel[list(tiny_networks.MEL_FRAMES)], "speech": states[:, list(tiny_networks.SPEECH_STEPS)]}
    np.savez_compressed(tiny_networks.GOLDENS, **kept, **arrays)


if __name__ == "__main__":
    main()
