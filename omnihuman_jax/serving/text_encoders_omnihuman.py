"""Large text encoders through `transformers`: HunyuanVideo's LLaVA-Llama-3 with CLIP-L, T5 and UMT5. Frozen, in
PyTorch.

They run in `omnihuman encode` and where a prompt is given to `generate`, never in training. torch and transformers are
imported when a network is loaded. No file beside this one: the trainer imports it from its package, an exported folder
carries it as it is. That the folder's weights are there, and no pickles, is its caller's to check
(`folders_omnihuman.weight_files`).
"""

import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Of HunyuanVideo: the prompt is put into a chat, hidden states are taken two layers before the last, and the first
# tokens, which are the same for every prompt, are cut off.
HUNYUAN_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
HUNYUAN_CROP = 95
HUNYUAN_SKIPPED_LAYERS = 2
CLIP_TOKENS = 77
MAX_TOKENS = 128
ENCODERS = ("t5", "umt5")
CHATS = ("llama", "llava")
# Parts of the whole models that the encoders are taken from; nothing of theirs is read.
_UNUSED = ("lm_head.", "decoder.", "vision_model.", "visual_projection.", "text_projection.", "logit_scale")


class EncodedText(NamedTuple):
    """tokens: a float32 [S_i, width] for each text, real tokens only; pooled: float32 [texts, pooled_width]."""

    tokens: list[np.ndarray]
    pooled: np.ndarray


def is_transformers_folder(folder: Path) -> bool:
    """Whether `load_transformers_text_encoder` reads this folder: a T5, or a pipeline's with a folder `text_encoder` in
    it.
    """
    if (folder / "text_encoder" / "config.json").is_file():
        return True
    return (folder / "config.json").is_file() and _kind(folder) in ENCODERS


class Parts(NamedTuple):
    """Folders that a text encoder is made of: networks with weights, and tokenizers; `kind` of the first network."""

    kind: str
    networks: tuple[Path, ...]
    tokenizers: tuple[Path, ...]


def parts_of(folder: Path) -> Parts:
    """What the text encoder in `folder` is made of; ValueError for another kind of network."""
    inside = (folder / "text_encoder" / "config.json").is_file()
    network = folder / "text_encoder" if inside else folder
    tokenizer = folder / "tokenizer" if inside else folder
    kind = _kind(network)
    if kind in ENCODERS:
        return Parts(kind, (network,), (tokenizer,))
    second = folder / "text_encoder_2"
    if kind not in CHATS or not (second / "config.json").is_file() or _kind(second) not in ("clip_text_model", "clip"):
        found = f"model_type {kind!r}" + (f" and {_kind(second)!r}" if (second / "config.json").is_file() else "")
        raise ValueError(
            f"{folder}: text encoders of {found}; supported: t5, umt5, or llama / llava with a clip_text_model as"
            " text_encoder_2"
        )
    return Parts(kind, (network, second), (tokenizer, folder / "tokenizer_2"))


def load_transformers_text_encoder(
    folder: Path, *, ref: str | None = None, sha256: Mapping[str, str] | None = None, device: str | None = None
) -> Any:
    """The text encoder in a folder.

    Args:
        folder: of a T5 or UMT5 encoder with its tokenizer; or of a pipeline in diffusers' layout, with `text_encoder`
            and `tokenizer` (Wan: UMT5), or those and `text_encoder_2` and `tokenizer_2` (HunyuanVideo: Llama or LLaVA,
            and CLIP).
        ref: what loads it again; the folder's absolute path by default.
        sha256: file name -> sha256 of what it is made of, for whoever records it.
        device: of torch; a GPU if there is one, by default.

    Raises:
        ValueError: torch or transformers is not installed, another kind of network, or weights that do not fit.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(f"{folder}: this text encoder needs {error.name}; pip install -e '.[text]'") from None
    transformers.utils.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    ref = ref or str(folder.resolve())
    kind, networks, tokenizers = parts_of(folder)
    if kind in ENCODERS:
        classes = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel}
        return T5TextEncoder(
            ref=ref,
            sha256=sha256 or {},
            model=_load(classes[kind], networks[0], device),
            tokenizer=transformers.AutoTokenizer.from_pretrained(tokenizers[0]),
            clean=kind == "umt5",
        )
    if kind == "llava":
        language = _load(transformers.LlavaForConditionalGeneration, networks[0], device).model.language_model
    else:
        language = _load(transformers.LlamaModel, networks[0], device)
    return HunyuanTextEncoder(
        ref=ref,
        sha256=sha256 or {},
        model=language,
        tokenizer=transformers.AutoTokenizer.from_pretrained(tokenizers[0]),
        clip=_load(transformers.CLIPTextModel, networks[1], device),
        clip_tokenizer=transformers.AutoTokenizer.from_pretrained(tokenizers[1]),
    )


def _kind(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text()).get("model_type"))


def _load(kind: Any, folder: Path, device: str) -> Any:
    """The network in the dtype of its file, for inference; ValueError names weights that are missing or unknown."""
    # Tensors of another shape are told like the rest: transformers would raise at the first look, in a table of many
    # lines.
    model, info = kind.from_pretrained(
        folder, dtype="auto", use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    wrong += [f"{name} is unknown" for name in sorted(info["unexpected_keys"]) if not name.startswith(_UNUSED)]
    wrong += [
        f"{name} has shape {tuple(found)}, expected {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"], key=lambda entry: str(entry[0]))
    ]
    if wrong:
        raise ValueError(f"{folder}: weights do not fit config.json: {'; '.join(wrong[:20])} ({len(wrong)} in all)")
    return model.eval().requires_grad_(False).to(device)


def _float32(tensor: Any) -> np.ndarray:
    return tensor.float().cpu().numpy()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class T5TextEncoder:
    """The encoder of a T5 or UMT5; nothing pooled. `clean`: white space and HTML entities as Wan's pipeline treats
    them.
    """

    ref: str
    sha256: Mapping[str, str]
    model: Any
    tokenizer: Any
    clean: bool
    pooled_width: int = 0

    @property
    def width(self) -> int:
        return int(self.model.config.d_model)

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> EncodedText:
        """Embeds `texts`, each alone and so without padding, cut to `max_tokens` tokens, the end token included."""
        import torch

        tokens = []
        for text in texts:
            if self.clean:
                text = re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
            ids = self.tokenizer([text], max_length=max_tokens, truncation=True, return_tensors="pt").input_ids
            with torch.inference_mode():
                states = self.model(
                    ids.to(self.model.device), torch.ones_like(ids).to(self.model.device)
                ).last_hidden_state
            tokens.append(_float32(states[0]))
        return EncodedText(tokens, np.zeros((len(texts), 0), np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HunyuanTextEncoder:
    """HunyuanVideo's two encoders: tokens from the language model, pooled from CLIP.

    The language model is causal, so a prompt's tokens are what they are with any padding behind them.
    """

    ref: str
    sha256: Mapping[str, str]
    model: Any
    tokenizer: Any
    clip: Any
    clip_tokenizer: Any
    template: str = HUNYUAN_TEMPLATE
    crop: int = HUNYUAN_CROP

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def pooled_width(self) -> int:
        return int(self.clip.config.hidden_size)

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> EncodedText:
        """Embeds `texts`, each alone, cut to `max_tokens` tokens after the template's beginning, which is dropped.

        Raises:
            ValueError: the tokenizer leaves nothing of the template behind its beginning: it is another model's.
        """
        import torch

        tokens, pooled = [], []
        for text in texts:
            filled = [self.template.format(text)]
            ids = self.tokenizer(
                filled, max_length=max_tokens + self.crop, truncation=True, return_tensors="pt"
            ).input_ids
            if ids.shape[1] <= self.crop:
                raise ValueError(
                    f"{self.ref}: a prompt of {ids.shape[1]} tokens, template included; expected more than {self.crop}"
                )
            clip_ids = self.clip_tokenizer(
                [text], padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            with torch.inference_mode():
                device = self.model.device
                out = self.model(
                    ids.to(device), attention_mask=torch.ones_like(ids).to(device), output_hidden_states=True
                )
                tokens.append(_float32(out.hidden_states[-(HUNYUAN_SKIPPED_LAYERS + 1)][0, self.crop :]))
                pooled.append(_float32(self.clip(clip_ids.to(self.clip.device)).pooler_output[0]))
        return EncodedText(tokens, np.stack(pooled) if pooled else np.zeros((0, self.pooled_width), np.float32))
