"""Tiny Llama, LLaVA, CLIP, T5 and UMT5 folders, written by `transformers` itself, with tokenizers made here."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = (
    "a",
    "man",
    "speaks",
    "to",
    "the",
    "camera",
    "woman",
    "dances",
    "describe",
    "video",
    ":",
    "user",
    "system",
    ".",
    "&",
)
TEXTS = ("a man speaks to the camera", "the woman dances . " * 9, "", "a  zebra &amp; a man")


def write_tokenizer(folder: Path, *, begin: str | None, end: str | None, pad: str, max_length: int = 512) -> int:
    """A tokenizer of words that adds `begin` and `end`, right-padded; returns the size of its vocabulary."""
    special = [token for token in dict.fromkeys(("<unk>", pad, begin, end)) if token]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    added = [token for token in (begin, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, (begin, "$A", end))),
        special_tokens=[(token, vocabulary[token]) for token in added],
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=pad, padding_side="right", model_max_length=max_length
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random, scales and biases too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def llama_config(vocabulary: int) -> transformers.LlamaConfig:
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    }
    return transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=512, pad_token_id=1, **sizes)


def write_hunyuan(folder: Path, *, llava: bool = False) -> Path:
    """The text encoders and tokenizers of a HunyuanVideo pipeline in diffusers' layout."""
    vocabulary = write_tokenizer(folder / "tokenizer", begin="<bos>", end=None, pad="<pad>")
    config = llama_config(vocabulary)
    if llava:
        vision = transformers.CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        both = transformers.LlavaConfig(vision_config=vision, text_config=config, image_token_index=vocabulary - 1)
        randomised(transformers.LlavaForConditionalGeneration(both)).save_pretrained(folder / "text_encoder")
    else:
        randomised(transformers.LlamaModel(config)).save_pretrained(folder / "text_encoder")
    vocabulary = write_tokenizer(folder / "tokenizer_2", begin="<start>", end="<end>", pad="<end>", max_length=77)
    clip = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=15,
        intermediate_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=77,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    randomised(transformers.CLIPTextModel(clip), seed=1).save_pretrained(folder / "text_encoder_2")
    return folder


def write_t5(folder: Path, kind: str, *, inside: bool) -> Path:
    """A T5 or UMT5 encoder with its tokenizer: one folder, or two `inside` a pipeline's."""
    network, tokenizer = (folder / "text_encoder", folder / "tokenizer") if inside else (folder, folder)
    vocabulary = write_tokenizer(tokenizer, begin=None, end="</s>", pad="<pad>")
    sizes = {"d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu"}
    classes = {
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
    }
    config, model = classes[kind]
    randomised(model(config(vocab_size=vocabulary, pad_token_id=1, **sizes))).save_pretrained(network)
    return folder
