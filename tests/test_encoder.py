"""Encoders: n of rows that see everything, training on masks, checkpoints, the masked-answer needle."""

import json
import math

import pytest
import torch
from tiny import needed_by
from transformers import (
    AutoModelForMaskedLM,
    BigBirdConfig,
    BigBirdForMaskedLM,
    EuroBertConfig,
    EuroBertForMaskedLM,
    PerceiverConfig,
    PreTrainedTokenizerFast,
)

import ssmax_eval.api as api
from ssmax_eval import Mechanism, UserError, load_model, register
from ssmax_eval.mechanisms.attach import attach, mechanisms_of
from ssmax_eval.mechanisms.implementation import our_function
from ssmax_eval.mechanisms.interface import recording
from ssmax_eval.mechanisms.layers import attends_both_ways
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms
from ssmax_eval.mechanisms.seen import Forward, Seen
from ssmax_eval.models.encoders import is_encoder
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.models.shape import work_of
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.masked import MaskedReader
from ssmax_eval.studies.advise import advise
from ssmax_eval.studies.asked import Asked
from ssmax_eval.training.corpus import Corpus, read_sentences, train_tokenizer
from ssmax_eval.training.examples import ANSWER, TEXT, VALUE, WORDS, Examples
from ssmax_eval.training.job import Job
from ssmax_eval.training.recipes import RECIPES
from ssmax_eval.training.train import train
from ssmax_eval.training.trainer import masked_nll

LENGTH = 40
PADDED = 9


def encoder(**changes):
    sizes = {"vocab_size": 1100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    torch.manual_seed(0)
    return EuroBertForMaskedLM(EuroBertConfig(**{**sizes, **heads, **special, **changes})).eval()


@pytest.fixture(scope="module")
def with_mask(tokenizer):
    """Return the small tokenizer with a mask token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="</s>", mask_token="[MASK]"
    )


def padded_ids():
    ids = torch.randint(4, 1000, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, -PADDED:] = 0
    return ids, mask


@torch.no_grad()
def test_softmax_through_our_function_is_the_models_own():
    model = encoder()
    ids, mask = padded_ids()
    own = model(input_ids=ids, attention_mask=mask).logits
    with our_function(model):
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, own)
        away = model(input_ids=ids).logits - encoder()(input_ids=ids).logits
    assert away.abs().max() < 1e-5


@torch.no_grad()
def test_n_counts_the_keys_that_are_no_padding():
    model = encoder()
    attach(model, "ssmax")
    ids, mask = padded_ids()
    with recording(model, Recorder(torch.tensor([[0, 5], [0, 5]]), lambda recorded: recorded.seen.n)) as recorder:
        model(input_ids=ids, attention_mask=mask)
    for n in recorder.kept.values():
        assert n[:, 0].tolist() == [[LENGTH] * 2, [LENGTH - PADDED] * 2]
    with recording(model, Recorder(torch.tensor([[0, 5]]), lambda recorded: recorded.seen.n)) as recorder:
        model(input_ids=ids[:1])
    assert recorder.kept[0].tolist() == [[[LENGTH] * 2]]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["ssmax", "entmax-1.5"])
def test_weights_are_those_of_a_float64_loop(attention):
    """Whole maps and chosen rows, with padding; scores from the layer's own q and k."""
    model = encoder()
    attach(model, attention)
    for mechanism in mechanisms_of(model).values():
        for parameter in mechanism.parameters():
            parameter += torch.tensor([0.0, 0.1, 0.2, 0.3])
    ids, mask = padded_ids()
    layer = model.model.layers[0].self_attn
    caught = []
    hook = layer.register_forward_pre_hook(lambda module, a, options: caught.append(options), with_kwargs=True)
    rows = torch.tensor([[0, 7, LENGTH - 1], [3, 7, 20]])
    with recording(model, Recorder(rows, lambda recorded: recorded.weights)) as recorder:
        model(input_ids=ids, attention_mask=mask)
    hook.remove()
    x, (cos, sin) = caught[0]["hidden_states"].double(), caught[0]["position_embeddings"]

    def turned(projection, heads):
        states = (x @ projection.weight.double().T).view(2, LENGTH, heads, 8)
        half = torch.cat([-states[..., 4:], states[..., :4]], -1)
        return states * cos.double()[:, :, None] + half * sin.double()[:, :, None]

    q, k = turned(layer.q_proj, 4), turned(layer.k_proj, 2)
    learned = next(mechanisms_of(model)["model.layers.0.self_attn"].parameters()).double()
    for b in range(2):
        seen = [j for j in range(LENGTH) if mask[b, j]]
        for head in range(4):
            for at, row in enumerate(rows[b].tolist()):
                scores = torch.stack([q[b, row, head] @ k[b, j, head // 2] for j in seen]) / math.sqrt(8)
                if attention == "ssmax":
                    wanted = (learned[head] * math.log(len(seen)) * scores).softmax(0)
                else:
                    wanted = bisected_entmax(learned[head] * scores)
                given = recorder.kept[0][b, head, at]
                assert given[seen].double() == pytest.approx(wanted.numpy(), abs=2e-6)
                assert given.sum() == pytest.approx(1, abs=1e-5)  # none is on padding


def bisected_entmax(scores):
    half = (scores - scores.max()) / 2
    low, high = -1.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ((half - middle).clamp(min=0) ** 2).sum() > 1 else (low, middle)
    return (half - low).clamp(min=0) ** 2


def test_distances_go_both_ways():
    seen = Seen(Forward(4, 4, None, False, torch.device("cpu"), 1.0))
    assert seen.distance[0, 0].tolist() == [[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]
    assert seen.at(torch.tensor([[2]])).distance.tolist() == [[[[2, 1, 0, 1]]]]


def test_s_starts_at_one_over_the_mean_of_ln_n_over_the_lengths():
    for lengths, wanted in ((), math.log(64)), ((16, 64), (math.log(16) + math.log(64)) / 2):
        model = encoder()
        attach(model, "ssmax", lengths=lengths)
        for mechanism in mechanisms_of(model).values():
            assert mechanism.s.tolist() == pytest.approx([1 / wanted] * 4)


@pytest.mark.parametrize("name", sorted(mechanisms()))
def test_every_mechanism_reads_a_text_alike_from_both_ends_or_is_refused(name):
    """Without rotation nothing tells an encoder's rows which end is the first: a text turned round gives its rows turned round."""
    still = {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": 0.0}
    spelling = {"cca": "cca:g=4,s=8"}.get(name, name)  # as large as it is by default it is softmax here
    model = encoder(rope_parameters=still, **needed_by(name))
    if mechanisms()[name].causal_only or mechanisms()[name].carries:
        with pytest.raises(UserError, match="it is defined for rows that see nothing after them"):
            attach(model, spelling)
        return
    attach(model, spelling)
    ids = torch.randint(5, 100, (1, 40), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        rows, turned, changed = (model(input_ids=each).logits[0] for each in (ids, ids.flip(1), other))
    assert (rows[0] - changed[0]).abs().max() > 0  # the first row looks at the last token
    assert (rows - turned.flip(0)).abs().max() < 1e-4 * rows.abs().max()


def test_a_mechanism_that_needs_an_order_is_refused(with_mask):
    class Ordered(Mechanism):
        """weights = softmax(z), in the order of the text."""

        name = "ordered"
        causal_only = True

    class Carrying(Mechanism):
        """weights = softmax(z), block after block."""

        name = "carrying"
        carries = True

    try:
        for each in (Ordered, Carrying):
            register(each)
            with pytest.raises(
                UserError, match=f"attention {each.name}: it is defined for rows that see nothing"
            ) as error:
                attach(encoder(), each.name)
            assert "\n" not in str(error.value)
    finally:
        for name in ("ordered", "carrying"):
            MECHANISMS.pop(name, None)


def test_an_encoder_is_told_from_a_decoder():
    assert is_encoder(encoder())
    assert attends_both_ways(encoder())
    work = work_of(encoder())
    assert not work.causal
    attention = work.operations(100) - 2 * work.weights * 100
    assert attention == pytest.approx(4 * 2 * 32 * 100 * 100)


TINY = {
    "hidden": "32", "feed_forward": "48", "train_length": "128", "steps": "12", "tokens_per_step": "512", "text_characters": "60000",
    "vocabulary": "400",
}  # fmt: skip


def tiny_recipe(**changes):
    return RECIPES["encoder"].changed(TINY | changes)


@pytest.fixture(scope="module")
def examples():
    recipe = tiny_recipe()
    sentences, sha256 = read_sentences(recipe)
    return Examples(recipe, Corpus.encode(train_tokenizer(recipe, sentences), sentences, sha256), 0)


def test_lengths_are_mixed_the_same_in_every_item_of_a_step(examples):
    again = Examples(examples.recipe, examples.corpus, examples.seed)
    lengths = []
    for step in range(12):
        items = [examples[4 * step + i] for i in range(4)]
        assert len({item["input_ids"].shape for item in items}) == 1
        assert sum(item["input_ids"].numel() for item in items) == 512
        lengths.append(items[0]["input_ids"].shape[1])
        other = again[4 * step]
        assert all(torch.equal(items[0][key], other[key]) for key in other)
    assert set(lengths) == set(examples.recipe.lengths) == {32, 64, 128}
    assert tiny_recipe(mixed_lengths="no").lengths == (128,)


def test_answers_are_masked_and_a_share_of_the_text(examples):
    mask = examples.corpus.encoder.tokenizer.mask_token_id
    kinds, hidden = [], []
    for index in range(len(examples)):
        item = examples[index]
        assert not (item["input_ids"] == mask).any()
        hidden.append((item["shown"] == mask).flatten())
        kinds.append(item["kinds"].flatten())
        assert torch.equal(item["shown"][item["shown"] != mask], item["input_ids"][item["shown"] != mask])
    kinds, hidden = torch.cat(kinds), torch.cat(hidden)
    assert hidden[kinds == ANSWER].all()
    assert not hidden[(kinds == WORDS) | (kinds == VALUE)].any()
    assert float(hidden[kinds == TEXT].float().mean()) == pytest.approx(0.15, abs=0.02)


def test_only_masked_tokens_have_a_loss():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 6, (2, 5), generator=torch.Generator().manual_seed(1))
    shown, kinds = ids.clone(), torch.zeros_like(ids)
    shown[0, 2] = shown[1, 4] = 6
    kinds[1, 4] = ANSWER
    total, seen = masked_nll(logits, ids, shown, kinds, torch.tensor([0.5, 1.0, 1.0, 4.0]))
    logs = logits.double().log_softmax(-1)
    text, answer = -logs[0, 2, ids[0, 2]], -logs[1, 4, ids[1, 4]]
    assert float(total) == pytest.approx(float(0.5 * text + 4 * answer), rel=1e-5)
    right = float(logits[1, 4].argmax() == ids[1, 4])
    assert seen.tolist() == pytest.approx([float(text), 1, right, 1], rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return {
        name: train(Job(tiny_recipe(), name), folder / name, device="cpu", compiled=False)
        for name in ("softmax", "ssmax")
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["softmax", "ssmax"])
def test_a_trained_encoder_loads_with_equal_logits(trained, name, tmp_path):
    model, tokenizer = load_model(str(trained[name]))
    ids = torch.arange(20, 60)[None]
    logits = model(input_ids=ids).logits
    other = AutoModelForMaskedLM.from_pretrained(trained[name], trust_remote_code=True).eval()
    assert torch.equal(other(input_ids=ids).logits, logits)
    assert type(other).__name__ == ("SSMax" if name == "ssmax" else "") + "EuroBertForMaskedLM"
    assert tokenizer.mask_token == "[MASK]"
    if name == "softmax":
        changed, _ = load_model(str(retrofit(str(trained[name]), "ssmax", tmp_path / "swapped")))
        assert [each.s.tolist() for each in mechanisms_of(changed).values()] == [
            pytest.approx([1 / math.log(128)] * 2)
        ] * 2


def test_a_training_is_the_same_again(trained, tmp_path):
    again = train(Job(tiny_recipe(), "ssmax"), tmp_path / "again", device="cpu", compiled=False)
    one, other = (load_model(str(folder))[0].state_dict() for folder in (trained["ssmax"], again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert json.loads((again / "training.json").read_text())["job"]["recipe"]["blocks"] == "eurobert"


def test_a_masked_answer_needle(trained, tmp_path):
    rows = api.needle(str(trained["ssmax"]), context_lengths=(64, 128), trials=2, output_path=tmp_path, device="cpu")
    assert rows.error.isna().all()
    assert set(rows.scoring) == {"masked"}
    record = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert record["reader"]["scoring"] == "masked"
    assert record["preflight"]["our_attention"] < 1e-3
    model, tokenizer = load_model(str(trained["ssmax"]))
    probe = NeedleProbe(context_lengths=(64, 128), trials=2, needle=api_needle())
    by_name = {sample.name: sample for sample in probe.plan()}
    for row in rows.itertuples():
        prompt = probe.prompt(tokenizer, by_name[row.sample])
        ids = torch.tensor([prompt.ids])
        ids[0, -prompt.answer_length :] = tokenizer.mask_token_id
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, -prompt.answer_length :].double().log_softmax(-1)
        answer = torch.tensor(prompt.ids[-prompt.answer_length :])
        own = logs.gather(1, answer[:, None])[:, 0]
        assert row.answer_nll == pytest.approx(-float(own.sum()), abs=1e-4)
        assert row.correct == bool((logs.argmax(1) == answer).all())
        # how float32 rounds differs between processors: a token as likely as the answer to 1e-5 may stand before or after it
        for rank, line, value in zip(row.answer_ranks, logs, own, strict=True):
            assert int((line > value + 1e-5).sum()) <= rank <= int((line > value - 1e-5).sum()) - 1
        assert row.context_length == len(prompt.ids)


def api_needle():
    from ssmax_eval.data.needles import Needle

    return Needle("recall")


def test_rows_are_the_same_for_any_batch_size(trained):
    model, tokenizer = load_model(str(trained["ssmax"]))
    probe = NeedleProbe(context_lengths=(64,), depth_percents=(0, 50, 100), trials=3, needle=api_needle())
    one, other = (
        [row for rows in probe(MaskedReader(model, tokenizer), batch_size=size) for row in rows] for size in (1, 4)
    )
    for row, same in zip(one, other, strict=True):
        assert row.pop("answer_nll") == pytest.approx(same.pop("answer_nll"), abs=1e-4)
        assert row.pop("margin") == pytest.approx(same.pop("margin"), abs=1e-4)
        assert row == same


def test_several_tokens_are_masked_together(with_mask):
    """Seven digits: none is told of the others, and the masses are those of the masked rows."""
    model = encoder(tie_word_embeddings=True)
    probe = NeedleProbe(context_lengths=(160,), trials=1, attention_mass=True)
    reader = MaskedReader(model, with_mask)
    prompts = [probe.prompt(with_mask, sample) for sample in probe.plan()[:2]]
    (score, _) = masses_of(reader)(prompts)
    assert len(score["answer_ranks"]) == prompts[0].answer_length == 7
    assert score["visible_keys"] == [160, 160]
    assert score["haystack_nll"] is None
    ids = torch.tensor([prompts[0].ids])
    ids[0, -7:] = with_mask.mask_token_id
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(input_ids=ids, output_attentions=True).attentions
    span = slice(prompts[0].value_start, prompts[0].value_end)
    for layer, map_ in enumerate(maps):
        assert score["mass_answer"][layer] == pytest.approx(map_[0, :, -7, span].sum(-1).tolist(), abs=1e-5)


def test_what_an_encoder_cannot_be_asked_is_said(trained, with_mask, tokenizer, tmp_path):
    model, own = load_model(str(trained["softmax"]))
    with pytest.raises(UserError, match="loss: not applicable to EuroBertForMaskedLM, an encoder"):
        LossProbe(context_length=64).check(model, own)
    with pytest.raises(UserError, match="loss: not applicable to EuroBertForMaskedLM, an encoder"):
        advise(Asked(str(trained["softmax"]), (64, 96), task="recall"), RunOptions(output_path=tmp_path / "advice"))
    assert not [*tmp_path.rglob("run.json")]  # before the race
    with pytest.raises(UserError, match="chunk 16: .* it is an encoder, which reads a text whole"):
        NeedleProbe(context_lengths=(64,), needle=api_needle(), chunk=16).check(model, own)
    with pytest.raises(UserError, match="an encoder writes nothing"):
        api.needle({"x": (model, own)}, context_lengths=(64,), task="recall", scoring="generate", output_path=tmp_path)
    with pytest.raises(UserError, match="is an encoder, not a causal .* no mask token"):
        MaskedReader(encoder(), tokenizer)
    with pytest.raises(UserError, match="recipe blocks eurobert, QK-norm: they have none"):
        RECIPES["encoder"].changed({"qk_norm": "true"})


def big_bird():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sparse = {"attention_type": "block_sparse", "block_size": 16, "num_random_blocks": 1, "initializer_range": 0.3}
    torch.manual_seed(0)
    return BigBirdForMaskedLM(
        BigBirdConfig(vocab_size=1100, max_position_embeddings=1024, pad_token_id=1, **sizes, **sparse)
    ).eval()


@pytest.mark.parametrize("lengths", [(512,), (96, 512)])
def test_a_forward_that_switches_its_model_decides_no_later_number(with_mask, tmp_path, lengths):
    """BigBird attends in full from its first short text on: neither the proof nor a short prompt may change a long one's numbers."""
    model = big_bird()
    probe = {"context_lengths": lengths, "depth_percents": (50,), "trials": 1}
    rows = api.needle((model, with_mask), output_path=tmp_path, **probe)
    for sample, row in zip(NeedleProbe(**probe).plan(), rows.to_dict("records"), strict=True):
        prompt = NeedleProbe(**probe).prompt(with_mask, sample)
        answer = prompt.answer_length
        shown = [*prompt.ids[:-answer], *[with_mask.mask_token_id] * answer]
        with torch.no_grad():
            logits = big_bird()(input_ids=torch.tensor([shown])).logits[0, -answer:]
        nll = -logits.log_softmax(-1).gather(1, torch.tensor(prompt.ids[-answer:])[:, None]).sum()
        assert row["answer_nll"] == pytest.approx(float(nll), abs=1e-3)
    assert model.bert.attention_type == "block_sparse"
    assert type(model.bert.encoder.layer[0].attention.self).__name__ == "BigBirdBlockSparseAttention"


def test_a_model_without_a_table_of_token_embeddings_is_refused_in_one_line(with_mask, tmp_path):
    sizes = {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 1, "v_channels": 32}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 16}
    model = AutoModelForMaskedLM.from_config(
        PerceiverConfig(vocab_size=1100, max_position_embeddings=256, **sizes, **heads)
    )
    with pytest.raises(UserError, match="PerceiverForMaskedLM has no table of token embeddings"):
        api.needle((model, with_mask), context_lengths=[128], output_path=tmp_path)
