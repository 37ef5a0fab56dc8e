"""The character tokenizer: one token for newline and for each printable ASCII character."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = ("\n", *map(chr, range(32, 127)))
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
PAD, BOS, EOS, UNKNOWN = (VOCABULARY[token] for token in SPECIAL)
CONTEXT = 256
"""Tokens, the beginning and the end of the text included."""


def encode(text: str) -> list[int]:
    """Token ids of the text alone; KeyError for a character outside the alphabet."""
    return [VOCABULARY[character] for character in text]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The same mapping as a fast tokenizer: ``<bos>`` first, padding left, decoding exact."""
    # a BPE without merges is a character tokenizer: nothing is split off, joined or normalised
    tokenizer = Tokenizer(
        models.BPE(vocab=VOCABULARY, merges=[], unk_token="<unk>", fuse_unk=False)
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
