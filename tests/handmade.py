"""A tokenizer whose every merge is written down here, so that its ids are the same on every machine and in every version."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ssmax_eval.data import vocabulary

WORDS = [*vocabulary.CITIES, *vocabulary.TRADES, *vocabulary.VERBS, *vocabulary.THINGS]
WORDS += "The special magic number is What the and that said of in to was".split()


def handmade(*prefix: str, suffix: tuple[str, ...] = (), bos: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE that puts `prefix` in front of a text and `suffix` behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*dict.fromkeys(["<s>", "</s>", *prefix, *suffix]), *alphabet]
    vocab = {name: i for i, name in enumerate(names)}
    merges = []
    for word in dict.fromkeys(f"Ġ{part}" for words in WORDS for part in words.split()):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    base = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.pre_tokenizer = pre_tokenizers.Sequence(list(split))
    base.decoder = decoders.ByteLevel()
    if prefix or suffix:
        around = dict.fromkeys([*prefix, *suffix])
        base.post_processor = processors.TemplateProcessing(
            single=" ".join([*prefix, "$A", *suffix]), special_tokens=[(name, vocab[name]) for name in around]
        )
    return PreTrainedTokenizerFast(tokenizer_object=base, bos_token=bos, eos_token="</s>", pad_token="</s>")
