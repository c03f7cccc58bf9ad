"""What a tokenizer puts around a text: its front stands in front of every prompt and document, its back nowhere."""

import pandas as pd
import pytest
import torch
from handmade import handmade
from tiny import build
from tokenizers import Regex
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import WhitespaceSplit

from ssmax_eval.data.documents import Documents
from ssmax_eval.data.encoding import Encoder, prefix_of
from ssmax_eval.data.needle_files import own_needle
from ssmax_eval.data.needles import Needle
from ssmax_eval.errors import UserError
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.probes.ruler.probe import RulerProbe
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.statistics import loss_by_position

GLM = ("[gMASK]", "<sop>")
AROUND = {
    "nothing": ((), (), None),
    "a bos": (("<s>",), (), "<s>"),
    "a bos that is not named so": (("<s>",), (), None),
    "two, none of them bos": (GLM, (), None),
    "a front and a back": (("[CLS]",), ("[SEP]",), None),
    "a back alone": ((), ("</s>",), None),
    "bos and eos": (("<s>",), ("</s>",), "<s>"),
    "the same before and behind": (("<s>",), ("<s>",), "<s>"),
}


@pytest.mark.parametrize("kind", AROUND)
def test_the_front_is_in_front_and_counts(kind):
    front, back, bos = AROUND[kind]
    tokenizer = handmade(*front, suffix=back, bos=bos)
    expected = tokenizer.convert_tokens_to_ids(list(front))
    assert prefix_of(tokenizer) == expected
    assert tokenizer("").input_ids == expected + tokenizer.convert_tokens_to_ids(list(back))
    special = {tokenizer.convert_tokens_to_ids(name) for name in (*front, *back)}
    probe = NeedleProbe((128, 300), (0, 50), 1, controls=("no-needle", "needle-only"))
    for sample in probe.plan():
        prompt = probe.prompt(tokenizer, sample)
        assert sample.control == "needle-only" or len(prompt.ids) == sample.context_length
        assert prompt.ids[: len(front)] == expected
        assert not special & set(prompt.ids[len(front) :])
        if sample.control is None and sample.depth_percent == 0:
            assert (prompt.needle_start, prompt.realised_depth_percent) == (len(front), 0)
        text = tokenizer.decode(prompt.ids[len(front) :])
        assert tokenizer(text).input_ids[: len(prompt.ids)] == prompt.ids
    window = Documents().windows(tokenizer, 100, 1, 0)[0]
    assert (window.ids[: window.prefix], len(window.ids)) == (expected, 100)
    assert not special & set(window.ids[window.prefix :])


def test_the_loss_of_a_window_read_alone_has_the_whole_front():
    tokenizer = handmade(*GLM)
    model = build("Llama", vocab_size=len(tokenizer))
    window = Documents().windows(tokenizer, 128, 1, 0)[0]
    gain = next(LossProbe(context_length=128, documents=1, window=32)(TransformersReader(model, tokenizer)))[-1]
    ids = torch.tensor([window.ids[:2] + window.ids[96:]])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.float()
    own = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert gain["nll_sum_near"] == pytest.approx(float(own[0, 2:].sum()), rel=1e-5)


def test_what_stands_in_front_of_every_text_is_no_part_of_its_loss():
    """A front of two tokens: the second has an nll, and no bin has it. The same without a front, and with one of one token."""
    tokenizer = handmade(*GLM)
    model = build("Llama", vocab_size=len(tokenizer))
    probe = LossProbe(context_length=64, documents=1, window=16)
    window = Documents().windows(tokenizer, 64, 1, 0)[0]
    rows = [row for row in next(probe(TransformersReader(model, tokenizer))) if row["measure"] == "position"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window.ids[:-1]])).logits.double()[0]
    own = torch.nn.functional.cross_entropy(logits, torch.tensor(window.ids[1:]), reduction="none")
    assert sum(row["tokens"] for row in rows) == 64 - 2
    assert sum(row["nll_sum"] for row in rows) == pytest.approx(float(own[1:].sum()), rel=1e-5)
    assert [(row["position_start"], row["tokens"], row["nll_sum"]) for row in rows[:1]] == [(1, 0, 0.0)]
    table = pd.DataFrame(rows).assign(series="a", probe="loss")
    curve = loss_by_position(table)
    assert curve["position_start"].min() == 2
    assert curve["loss"].notna().all()
    assert curve["failed"].sum() == 0
    alone = handmade("<s>")
    counted = next(probe(TransformersReader(build("Llama", vocab_size=len(alone)), alone)))
    assert sum(row["tokens"] for row in counted if row["measure"] == "position") == 64 - 1


def test_plan_1_refuses_a_front_that_it_would_drop():
    with pytest.raises(UserError, match=r"plan 1: .* puts '\[gMASK\]<sop>' there; take plan 2"):
        NeedleProbe((128,), (50,), 1, plan_version=1).check(build("Llama", vocab_size=2000), handmade(*GLM))


def test_a_front_that_cannot_be_told_is_refused():
    tokenizer = handmade()

    class Odd:
        def __call__(self, text, add_special_tokens=True, **options):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            return type("Encoded", (), {"input_ids": [1, *reversed(ids), 5] if add_special_tokens else [7, *ids]})

    with pytest.raises(UserError, match="tokenizer Odd: what it puts in front of a text cannot be told"):
        prefix_of(Odd())


@pytest.mark.parametrize("kind", ["two, none of them bos", "a front and a back"])
@pytest.mark.filterwarnings("ignore")
def test_both_lm_eval_model_types_score_these_ids(kind, tmp_path):
    """Stock hf puts [gMASK]<sop> in front itself; where it would put something behind, the ids come with the document."""
    from harnessed import evaluate, ours, stock

    front, back, bos = AROUND[kind]
    tokenizer = handmade(*front, suffix=back, bos=bos)
    model = build("Llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    grid = {"context_lengths": [96, 140], "depth_percents": [0, 100], "trials": 1}
    for make in (stock, ours):
        lm = make(tmp_path)
        samples = evaluate(lm, "ssmax_needle", pretrained=str(tmp_path), **grid)["samples"]["ssmax_needle"]
        for sample in samples:
            doc = sample["doc"]
            probe = NeedleProbe((96, 140), (0, 100), 1)
            (of_doc,) = [each for each in probe.plan() if each.name == doc["sample"]]
            prompt = probe.prompt(tokenizer, of_doc)
            assert bool(doc["ids"]) == bool(back)
            assert doc["prompt_sha256"] == prompt.sha256
            with torch.no_grad():
                rows = model(torch.tensor([prompt.ids])).logits[0].float().log_softmax(-1)
            k = prompt.answer_length
            own = rows[-k - 1 : -1].gather(1, torch.tensor(prompt.ids[-k:])[:, None])
            assert sample["nll"] == pytest.approx(-float(own.sum()), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_ids_of_another_tokenizer_are_refused(tmp_path):
    """They travel with a document whose text would give others, and must still be that text to the model."""
    from harnessed import stock

    from ssmax_eval.harness.documents import needle_prompts
    from ssmax_eval.harness.requests import prompt_of

    tokenizer, shifted = handmade("[CLS]", suffix=("[SEP]",)), handmade("[CLS]", "[MORE]", suffix=("[SEP]",))
    doc = needle_prompts(tokenizer=tokenizer, context_lengths=[96], depth_percents=[0], trials=1)["test"][0]
    model = build("Llama", vocab_size=len(shifted))
    assert prompt_of(stock(model, tokenizer=tokenizer), doc).ids == doc["ids"]
    with pytest.raises(UserError, match="another text than the task assembled; give task and model one tokenizer"):
        prompt_of(stock(model, tokenizer=shifted), doc)


def words_known(known):
    """Return a tokenizer of whole words which calls all but `known` unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *known])}, unk_token="<unk>"))
    split = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.BertPreTokenizer()
    base.pre_tokenizer = pre_tokenizers.Sequence(list(split))
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>")


def test_a_key_or_value_of_unknown_tokens_is_refused():
    from ssmax_eval.data.unknown import refuse_unknown
    from ssmax_eval.data.vocabulary import CITIES

    frame = "The special magic number is : . What the ? 0 1 2 3 4 5 6 7 8 9".split()
    refuse_unknown(words_known([*frame, *CITIES]), Needle())
    for missing, message in (
        ("Kyiv", "needle 'Kyiv': tokenizer .* no token for it but '<unk>'"),
        ("7", "needle '7890123'"),
    ):
        known = [word for word in [*frame, *CITIES] if word != missing]
        with pytest.raises(UserError, match=message):
            refuse_unknown(words_known(known), Needle())
        with pytest.raises(UserError, match=message):
            NeedleProbe((300,), (50,), 1).check(build("Llama"), words_known(known))
    with pytest.raises(UserError, match="needle 'amber-acorn'"):
        refuse_unknown(words_known([*frame, *CITIES]), Needle(value="word"))
    for task in ("single", "multikey", "digits", "recall"):
        refuse_unknown(handmade(), Needle(task))  # byte tokens are no unknown ones


def test_keys_that_become_the_same_ids_are_refused():
    """A byte-level tokenizer without the letters of some cities drops them in silence."""
    from tokenizers import normalizers

    from ssmax_eval.data.unknown import refuse_unknown

    tokenizer = handmade()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Riga", "Rome")
    with pytest.raises(UserError, match=r"gives the same ids to it and to 'The special magic Rome number"):
        refuse_unknown(tokenizer, Needle())
    assert Encoder(tokenizer, ".", " ").prefix == []


def dropping():
    """Return a BPE without an unknown token: what is not among its letters it leaves out without a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-:.,;?'\"!"]
    base = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(letters)}, merges=[]))
    base.pre_tokenizer, base.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")


CHINESE = "今天天气很好。我们去公园散步。孩子们在湖边玩耍。" * 200
ENGLISH = "It rains in the old town. We walk to the park and sing. The children play by the lake. " * 200


@pytest.mark.parametrize("make", [dropping, lambda: words_known(dict.fromkeys(ENGLISH.replace(".", " . ").split()))])
def test_a_text_that_a_tokenizer_cannot_say_is_refused_or_told(make, tmp_path):
    """Of unknown tokens, or of none at all: the model would be asked about another text."""
    tokenizer, model = make(), build("Llama", vocab_size=100)
    for name, text in (("chinese", CHINESE), ("mixed", ENGLISH + CHINESE[:1000]), ("english", ENGLISH)):
        (tmp_path / name).write_text(text)
    loss = LossProbe(context_length=64, documents=1, window=16, text=str(tmp_path / "chinese"))
    with pytest.raises(UserError, match="text 'chinese': tokenizer .* has no tokens for .*% of its characters"):
        loss.check(model, tokenizer)
    mixed, english = (LossProbe(context_length=64, text=str(tmp_path / name)) for name in ("mixed", "english"))
    assert "text 'mixed': its tokenizer has no tokens for" in mixed.advice(tokenizer)
    assert english.advice(tokenizer) == ""
    english.windows(tokenizer)


def test_a_haystack_and_a_question_that_a_tokenizer_cannot_say_are_refused(tmp_path):
    (tmp_path / "chinese").write_text(CHINESE)
    tokenizer, model = dropping(), build("Llama", vocab_size=100)
    with pytest.raises(UserError, match="haystack 'chinese': tokenizer .* has no tokens for 100% of its characters"):
        NeedleProbe((256,), (50,), 1, haystack=str(tmp_path / "chinese")).check(model, tokenizer)
    needle = own_needle("The code of {key} is {value}.", "北京的密码是什么呢？")
    with pytest.raises(UserError, match="question '北京的密码是什么呢？': tokenizer .* has no tokens for"):
        NeedleProbe((256,), (50,), 1, needle=needle).check(model, tokenizer)
    with pytest.raises(UserError, match="haystack 'chinese': tokenizer"):
        RulerProbe(haystack=str(tmp_path / "chinese")).check(model, tokenizer)
    NeedleProbe((256,), (50,), 1).check(model, tokenizer)


def test_a_haystack_without_a_single_token_is_an_error_and_no_endless_loop(tmp_path):
    (tmp_path / "chinese").write_text(CHINESE)
    tokenizer = dropping()
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()  # no token for a space either
    for plan in (1, 2):
        probe = NeedleProbe((256,), (50,), 1, haystack=str(tmp_path / "chinese"), plan_version=plan)
        with pytest.raises(UserError, match="no tokens for 10,000 sentences of the haystack in a row"):
            probe.prompt(tokenizer, probe.plan()[0])
    tokenizer.backend_tokenizer.normalizer = Replace(Regex("."), "")
    with pytest.raises(UserError, match="has no tokens for prose"):
        Documents().windows(tokenizer, 64, 1, 0)
