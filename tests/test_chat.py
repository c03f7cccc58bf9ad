"""Chats: the template's tokens count in L, ids are those of the template around the message, what cannot be repeated is refused."""

import json
import logging
import re

import pytest
from conftest import make_tokenizer
from tiny import build

import ssmax_eval
from ssmax_eval.data.chat import Chat, chat_asked, parted
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.needle_files import read
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import assemble
from ssmax_eval.errors import UserError
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.statistics import with_series

TEXT = haystack("text", any_script=True)
# as SmolLM2's and Qwen's; as Llama 3's, with a BOS, a date, and messages trimmed; as Mistral's, without a newline anywhere
PLAIN = (
    "{% for m in messages %}{{ '[' + m['role'] + ']\n' + m['content'] + '[end]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n\n' }}{% if loop.first %}{{ 'Today: ' + "
    "strftime_now('%d %b %Y') + '\n' }}{% endif %}{{ m['content']|trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
)
TEMPLATES = {"plain": PLAIN, "trimmed": TRIMMED, "instruct": INSTRUCT}


def laid(tokenizer, length, depth, chat, needle, **options):
    return assemble(
        tokenizer, needle, TEXT, length, depth, f"{length}/{depth}", haystack_seed="trial", chat=chat, **options
    )


@pytest.mark.parametrize("kind", ["digits", "multidigit", "bos"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_l_tokens_true_spans_and_the_ids_of_the_template(kind, name):
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = TEMPLATES[name]
    chat = Chat()
    turn = chat.turn(tokenizer)
    decode = tokenizer.decode
    for needle in (Needle("multikey", "word"), read("chinese"), Needle("digits")):
        for length, depth in ((600, 0), (611, 50), (600, 100)):
            prompt = laid(tokenizer, length, depth, chat, needle)
            assert len(prompt.ids) == length
            assert decode(prompt.ids[prompt.needle_start : prompt.needle_end]).strip() == prompt.needle
            assert decode(prompt.ids[prompt.value_start : prompt.value_end]).strip() in prompt.expected
            assert decode(prompt.ids[-prompt.answer_length :]).strip() == prompt.expected
            text = decode(prompt.ids)
            message, lead = text.removeprefix(turn.header).split(turn.footer)
            asked, words = parted(prompt.question)
            assert message.endswith(asked)
            assert message == message.strip()
            assert decode(prompt.ids[prompt.question_start :]).strip().startswith(asked)
            assert lead == f"{words}{' ' if words and needle.task != 'chinese' else ''}{prompt.expected}"
            if name == "trimmed":  # which asks for the date, and is told one that stays
                assert turn.date in "2024-07-26"
                assert "26 Jul 2024" in turn.header
                continue
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
            )
            assert rendered + lead == text
            assert tokenizer(rendered + lead, add_special_tokens=False).input_ids == prompt.ids
        assert prompt.realised_depth_percent == pytest.approx(100, abs=3)
    assert re.fullmatch(r"chat auto [0-9a-f]{8}", prompt.chat)


def test_a_first_sentence_with_other_tokens_behind_the_header_leaves_the_length(tokenizer):
    """Chinese starts with another count of tokens without the space in front of it."""
    tokenizer.chat_template = PLAIN
    try:
        for trial in range(8):
            prompt = assemble(
                tokenizer,
                read("german"),
                TEXT,
                400,
                30,
                f"{trial}",
                haystack_seed=f"{trial}",
                chat=Chat(system="Kurz!"),
            )
            assert len(prompt.ids) == 400
            assert "[system]\nKurz![end]\n[user]\n" in tokenizer.decode(prompt.ids)
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        ("{% for %}", None, "cannot be rendered (TemplateSyntaxError"),
        ("{{ messages[7]['content'] }}", None, "cannot be rendered (UndefinedError"),
        (INSTRUCT, "Be brief.", "System role not supported); give another as --chat-template FILE; leave --system out"),
        ("{{ messages[0]['role'] }}", None, "shows the user's message 0 times"),
        ("{{ messages[0]['content'] * 2 }}", None, "shows the user's message 2 times"),
        (
            "{{ messages[0]['content']|length }}{{ messages[0]['content'] }}",
            None,
            "changes with the message or the moment",
        ),
        ("{{ range(90000)|random }}{{ messages[0]['content'] }}", None, "changes with the message or the moment"),
        ("{{ messages.__class__.__mro__ }}", None, "cannot be rendered (SecurityError"),
    ],
)
def test_templates_that_are_refused(tokenizer, template, system, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Chat("mine", template, system).turn(tokenizer)
    assert "\n" not in str(error.value)


def test_what_is_asked_for(tmp_path, tokenizer):
    (tmp_path / "mine.jinja").write_text(PLAIN)
    (tmp_path / "bom.jinja").write_text(PLAIN, "utf-8-sig")
    assert chat_asked(tmp_path / "bom.jinja").text == PLAIN
    assert chat_asked("none") is None
    assert chat_asked("auto") == Chat()
    assert chat_asked(tmp_path / "mine.jinja") == Chat("mine.jinja", PLAIN)
    for given, message in (
        (("auot", None), "no such file; allowed are auto, none and a Jinja file"),
        (("none", "Be brief."), "add --chat-template auto"),
    ):
        with pytest.raises(UserError, match=message):
            chat_asked(*given)
    assert Chat().turn(tokenizer) is None  # it brings none
    with pytest.raises(UserError, match="brings no chat template to say it in"):
        Chat(system="Be brief.").turn(tokenizer)
    with pytest.raises(UserError, match="2 with a chat template"):
        NeedleProbe(context_lengths=(96,), plan_version=1, chat=Chat())
    with pytest.raises(UserError, match="makes chats of its own"):
        NeedleProbe(context_lengths=(96,), chat=Chat()).check(None, tokenizer)
    assert parted("What is it? It is") == ("What is it?", "It is")
    assert parted("是多少？是") == ("是多少？", "是")
    assert parted("ما هو؟ هو") == ("ما هو؟", "هو")
    assert parted("L=") == ("L=", "")


@pytest.fixture
def instruct(tmp_path, tokenizer):
    """Return a folder with a tiny model whose tokenizer brings a chat template."""
    folder = tmp_path / "instruct"
    build("Llama", vocab_size=1024, max_position_embeddings=512).save_pretrained(folder)
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    return folder


def test_runs_with_and_without_are_two_series_and_advice_is_one_line(instruct, tmp_path, caplog, checkpoint):
    small = {"context_lengths": [160], "depth_percents": [0, 50], "trials": 1, "output_path": tmp_path / "results"}
    with caplog.at_level(logging.WARNING):
        plain = ssmax_eval.needle(str(instruct), **small)
    advice = [each.message for each in caplog.records if "chat" in each.message]
    said = "it brings a chat template and is read without; --chat-template auto reads it as a chat"
    assert advice == [f"ssmax-eval: note: model 'instruct': {said}"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        chats = ssmax_eval.needle({"instruct": str(instruct), "base": str(checkpoint)}, **small, chat_template="auto")
    advice = [each.message for each in caplog.records if "chat" in each.message]
    assert advice == ["ssmax-eval: note: model 'base': it brings no chat template, so it is read without"]
    assert plain["chat"].isna().all()
    assert chats.groupby("model")["chat"].nunique(dropna=False).tolist() == [1, 1]
    every = with_series(ssmax_eval.load_results(tmp_path / "results"))
    names = {*every["series"]}
    assert len(names) == 3
    assert {"base", "instruct"} < names
    assert any(name.startswith("instruct (chat auto ") for name in names)
    records = [json.loads(file.read_text()) for file in (tmp_path / "results").rglob("run.json")]
    told = {(record["model"]["label"], record["model"]["kind"], "chat" in record) for record in records}
    assert told == {("instruct", "instruct", False), ("instruct", "instruct", True), ("base", "base", True)}
    chat = next(record["chat"] for record in records if record.get("chat"))
    assert chat["header"] == "[user]\n"
    assert chat["footer"] == "[end]\n[assistant]\n"
    assert len(chat["sha256"]) == 64


def test_verdicts_are_the_forward_of_the_templates_own_ids(instruct):
    """Forced and generated scoring begin behind the assistant's header: the unmodified model's forward on the template's ids says so."""
    import torch

    model, tokenizer = ssmax_eval.load_model(str(instruct))
    probe = NeedleProbe(context_lengths=(160,), depth_percents=(50,), trials=1, chat=Chat())
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    turn = Chat().turn(tokenizer)
    message, closing = tokenizer.decode(prompt.ids).removeprefix(turn.header).split(turn.footer)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    ids = ids + tokenizer(closing, add_special_tokens=False).input_ids
    with torch.no_grad():
        nll = -model(torch.tensor([ids])).logits[0].log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    from ssmax_eval.readers.answers import forced

    score = forced(model, tokenizer, [prompt])[0]
    assert score["answer_nll"] == pytest.approx(float(nll[-prompt.answer_length :].sum()), rel=1e-4)


def test_lm_evals_apply_chat_template_gives_the_same_ids(instruct):
    """lm-eval's own rendering of the same message, its own encoding of it, and its verdicts on them."""
    harnessed = pytest.importorskip("harnessed")
    given = {"pretrained": str(instruct), "context_lengths": [160], "depth_percents": [0, 50], "trials": 1}
    for lm in (harnessed.stock(instruct), harnessed.ours(instruct)):
        task = harnessed.tasks("ssmax_needle", **given)["tasks"]["ssmax_needle"]
        task.build_all_requests(
            apply_chat_template=True,
            system_instruction="Be brief.",
            chat_template=lm.apply_chat_template,
            fewshot_as_multiturn=True,
        )
        probe = NeedleProbe(context_lengths=(160,), depth_percents=(0, 50), trials=1, chat=Chat(system="Be brief."))
        native = {sample.name: probe.prompt(lm.tokenizer, sample) for sample in probe.plan()}
        turn = probe.chat.turn(lm.tokenizer)
        for request in task.instances:
            ours = native[request.doc["sample"]]
            message, closing = lm.tokenizer.decode(ours.ids).removeprefix(turn.header).split(turn.footer)
            said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": message}]
            assert lm.tok_encode(lm.apply_chat_template(said, add_generation_prompt=True) + closing) == ours.ids
            assert harnessed.prompt_of(lm, request.doc).ids == ours.ids
            assert request.doc["chat"] == ours.chat
        assert len(lm.exact_loglikelihood(task.instances)) == 2
        assert task.config.metadata["parameters"]["chat"] == {"name": "auto", "text": None, "system": "Be brief."}


def test_what_lm_eval_cannot_do_as_chats(instruct, checkpoint):
    harnessed = pytest.importorskip("harnessed")
    given = {"context_lengths": [160], "trials": 1}

    def built(name, folder, render=None):
        task = harnessed.tasks(name, pretrained=str(folder), **given)["tasks"][name]
        task.build_all_requests(apply_chat_template=True, chat_template=render)

    with pytest.raises(UserError, match="brings no chat template; leave --apply_chat_template out"):
        built("ssmax_needle", checkpoint)
    with pytest.raises(UserError, match="leave --apply_chat_template out"):
        built("ssmax_loss", instruct)
    with pytest.raises(UserError, match="is not its tokenizer's default"):
        built("ssmax_needle", instruct, lambda messages, add_generation_prompt: messages[-1]["content"])
