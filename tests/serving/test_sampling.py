# SPDX-License-Identifier: Apache-2.0
"""Every field of SamplingParams does what it says, computed independently from the logits."""

import re
from collections import Counter
from copy import deepcopy

import pytest
import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

from serving.comparison import TOLERANCE, prompts, reference_logprobs

PROMPT = prompts(seed=9)[5]
LONG_PROMPT = prompts(seed=9)[-1]


@pytest.fixture(scope="module")
def model(models):
    return models("llama")


@pytest.fixture(scope="module")
def llm(model, make_engine):
    options = {"skip_tokenizer_init": False, "max_model_len": 200, "max_logprobs": -1}
    with make_engine(model.name_or_path, **options) as llm:
        yield llm


@pytest.fixture(scope="module")
def complete(llm):
    """The completions of PROMPT, or of the prompts given, with the parameters given."""

    def run(*params, prompt=PROMPT, **options):
        params = params or (SamplingParams(**{"temperature": 0, "max_tokens": 12} | options),)
        requests = [{"prompt_token_ids": prompt}] * len(params)
        outputs = llm.generate(requests, list(params), use_tqdm=False)
        answers = [output.outputs[0] for output in outputs]
        return answers[0] if len(answers) == 1 else answers

    return run


@pytest.fixture(scope="module")
def greedy(complete):
    return list(complete().token_ids)


@pytest.fixture(scope="module")
def letters(llm):
    """Tokens that are one ASCII letter, so that texts are easy to read."""
    tokenizer = llm.get_tokenizer()
    return [token for word, token in tokenizer.get_vocab().items() if re.fullmatch("[a-z]", word)]


def greedy_with(model, change, steps=12):
    """Greedy decoding by Hugging Face, `change(logits, prompt, output)` applied at each step."""
    output = []
    for _ in range(steps):
        logits = model(torch.tensor([PROMPT + output])).logits[0, -1].detach().clone()
        output.append(int(change(logits, PROMPT, output).argmax()))
    return output


def test_repetition_penalty(model, complete):
    def penalise(logits, prompt, output):
        for token in {*prompt, *output}:
            logits[token] *= 1.8 if logits[token] < 0 else 1 / 1.8
        return logits

    assert list(complete(repetition_penalty=1.8).token_ids) == greedy_with(model, penalise)


def test_frequency_and_presence_penalty(model, complete):
    def penalise(logits, prompt, output):
        for token, count in Counter(output).items():
            logits[token] -= 0.7 * count + 0.4
        return logits

    found = complete(frequency_penalty=0.7, presence_penalty=0.4).token_ids
    assert list(found) == greedy_with(model, penalise)


def test_logit_bias(model, complete, greedy):
    biased = {greedy[0]: -100.0, 7: 0.5}

    def bias(logits, prompt, output):
        for token, value in biased.items():
            logits[token] += value
        return logits

    assert list(complete(logit_bias=biased).token_ids) == greedy_with(model, bias)


def test_allowed_token_ids(model, complete):
    def allow(logits, prompt, output):
        kept = torch.full_like(logits, float("-inf"))
        kept[[5, 9, 40]] = logits[[5, 9, 40]]
        return kept

    assert list(complete(allowed_token_ids=[5, 9, 40]).token_ids) == greedy_with(model, allow)


@pytest.mark.parametrize("option", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_that_leave_the_best_token(option, complete, greedy):
    assert list(complete(temperature=1.3, seed=1, **option).token_ids) == greedy


@pytest.mark.parametrize(
    "option",
    [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.3}, {"min_p": 0.4}],
    ids=str,
)
def test_distribution(option, model, llm):
    """2,000 draws of one token: every share within 4.5 standard deviations of its probability."""
    params = {"temperature": 1.0} | option
    logits = model(torch.tensor([PROMPT])).logits[0, -1].detach()
    probabilities = (logits / params["temperature"]).softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if "top_k" in params:
        keep[params["top_k"] :] = False
    if "top_p" in params:
        keep &= ordered.cumsum(-1) - ordered < params["top_p"]
    if "min_p" in params:
        keep &= ordered >= params["min_p"] * ordered[0]
    expected = torch.zeros_like(probabilities)
    expected[tokens[keep]] = ordered[keep] / ordered[keep].sum()

    draws = 2000
    output = llm.generate(
        {"prompt_token_ids": PROMPT},
        SamplingParams(n=draws, max_tokens=1, detokenize=False, **params),
        use_tqdm=False,
    )[0]
    counts = Counter(completion.token_ids[0] for completion in output.outputs)
    for token, probability in enumerate(expected.tolist()):
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - draws * probability) <= 4.5 * deviation + 1, token
    assert sum(counts.values()) == draws


def test_seed(complete):
    alone = complete(temperature=1.0, seed=11).token_ids
    assert complete(temperature=1.0, seed=11).token_ids == alone
    assert complete(temperature=1.0, seed=12).token_ids != alone
    seeds = [11, None, 12, 11]
    batch = complete(*[SamplingParams(temperature=1.0, seed=s, max_tokens=12) for s in seeds])
    assert batch[0].token_ids == batch[3].token_ids == alone


def test_stop_token_ids_and_min_tokens(complete, greedy):
    first = complete(stop_token_ids=[greedy[3]])
    assert list(first.token_ids) == greedy[: greedy.index(greedy[3]) + 1]
    assert (first.finish_reason, first.stop_reason) == ("stop", greedy[3])
    longer = complete(stop_token_ids=[greedy[0]], min_tokens=6)
    assert len(longer.token_ids) >= 6
    assert greedy[0] not in longer.token_ids[:6]


def test_max_tokens_and_end_of_sequence(complete, llm):
    end = llm.get_tokenizer().eos_token_id
    biased = {"logit_bias": {end: 100.0}}
    assert complete(**biased).finish_reason == "stop"
    assert len(complete(**biased).token_ids) == 1
    ignored = complete(ignore_eos=True, max_tokens=5, **biased)
    assert (list(ignored.token_ids), ignored.finish_reason) == ([end] * 5, "length")
    assert ignored.text == ""
    assert complete(ignore_eos=True, max_tokens=2, skip_special_tokens=False, **biased).text


def test_stop_strings(complete, letters):
    whole = complete(allowed_token_ids=letters).text
    assert re.fullmatch("[a-z]{12}", whole)
    word = whole[4:6]
    before = whole[: whole.index(word)]
    stopped = complete(allowed_token_ids=letters, stop=[word, "0"])
    assert (stopped.text, stopped.stop_reason) == (before, word)
    kept = complete(allowed_token_ids=letters, stop=word, include_stop_str_in_output=True)
    assert kept.text == before + word


def test_bad_words(complete, letters):
    whole = complete(allowed_token_ids=letters).text
    without = complete(allowed_token_ids=letters, bad_words=[whole[0], whole[1:3]]).text
    assert re.fullmatch("[a-z]{12}", without)
    assert whole[0] not in without
    assert whole[1:3] not in without


def test_repetition_detection(complete):
    detection = RepetitionDetectionParams(min_pattern_size=1, max_pattern_size=2, min_count=4)
    found = complete(logit_bias={40: 100.0}, max_tokens=50, repetition_detection=detection)
    assert len(found.token_ids) < 50
    assert found.finish_reason == "repetition"


def test_logprobs(complete, model):
    expected = reference_logprobs(model, PROMPT)[-1]
    for count in (0, 3, -1):
        found = complete(logprobs=count, max_tokens=1).logprobs[0]
        assert len(found) == (expected.numel() if count < 0 else max(count, 1))
        for token, entry in found.items():
            assert abs(entry.logprob - expected[token].item()) <= TOLERANCE


def test_logprobs_of_different_kinds_in_one_batch(complete, model):
    """vLLM's own sampler gives all of them the last kind."""
    expected = reference_logprobs(model, PROMPT)[-1]
    best = expected.argsort(descending=True).tolist()
    common = {"temperature": 0, "max_tokens": 1}
    answers = complete(
        SamplingParams(logprobs=4, **common),
        SamplingParams(logprob_token_ids=[3, 200], **common),
        SamplingParams(**common),
        SamplingParams(logprobs=1, **common),
    )
    kinds = [set(best[:4]), {best[0], 3, 200}, None, {best[0]}]
    for answer, kind in zip(answers, kinds, strict=True):
        if kind is None:
            assert answer.logprobs is None
            continue
        assert set(answer.logprobs[0]) == kind
        for token, entry in answer.logprobs[0].items():
            assert abs(entry.logprob - expected[token].item()) <= TOLERANCE


def test_n_and_output_of_each(llm, greedy):
    output = llm.generate(
        {"prompt_token_ids": PROMPT},
        SamplingParams(n=3, temperature=1.0, top_k=1, max_tokens=12, detokenize=False),
        use_tqdm=False,
    )[0]
    assert [list(completion.token_ids) for completion in output.outputs] == [greedy] * 3
    assert all(completion.text == "" for completion in output.outputs)


STRUCTURES = {
    "regex": (StructuredOutputsParams(regex=r"[0-9]{3}-[ab]+!"), r"[0-9]{3}-[ab]+!"),
    "choice": (StructuredOutputsParams(choice=["yes", "no"]), "yes|no"),
    "grammar": (StructuredOutputsParams(grammar='root ::= "x" ("y" | "z") "w"'), "x[yz]w"),
    "json": (
        StructuredOutputsParams(
            json={
                "type": "object",
                "properties": {"ok": {"type": "boolean"}, "at": {"enum": ["here", "there"]}},
                "required": ["ok", "at"],
                "additionalProperties": False,
            }
        ),
        r'\{\s*"ok"\s*:\s*(true|false)\s*,\s*"at"\s*:\s*"t?here"\s*\}',
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structured_outputs(name, complete):
    """In one batch with a request that has no grammar, at two temperatures."""
    structure, pattern = deepcopy(STRUCTURES[name])  # vLLM notes its back-end in them
    common = {"max_tokens": 60, "logit_bias": {}, "seed": 3}
    free, cold, warm = complete(
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(temperature=0, structured_outputs=structure, **common),
        SamplingParams(temperature=0.6, structured_outputs=structure, **common),
    )
    assert len(free.token_ids) == 12
    for answer in (cold, warm):
        # An endless repetition is cut by max_tokens; what is there must fit as far as it goes.
        if answer.finish_reason == "stop":
            assert re.fullmatch(pattern, answer.text)
        else:
            assert name in ("regex", "json")
            assert re.match(r"[0-9]{3}-[ab]|\{", answer.text)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens"),
        ({"logprobs": -2}, "logprobs"),
        ({"logit_bias": {100_000: 1.0}}, "logit_bias|vocab"),
        ({"allowed_token_ids": [100_000]}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stop": [""]}, "stop"),
        ({"bad_words": [""]}, "bad_words"),
        ({"thinking_token_budget": 4}, "thinking_token_budget"),
        ({"prompt_logprob_token_ids": [[1]]}, "prompt_logprob_token_ids"),
        ({"structured_outputs": StructuredOutputsParams(regex="[")}, "regex|grammar|structured"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refused(options, named, complete, greedy):
    """A bad value raises what names it, and the engine goes on."""
    with pytest.raises(VLLMValidationError, match=named):
        complete(**options)
    assert list(complete().token_ids) == greedy


@pytest.mark.parametrize("prompt", [[], [100_000], [5] * 200], ids=["empty", "unknown", "too long"])
def test_refused_prompts(prompt, complete, greedy):
    with pytest.raises(VLLMValidationError, match=r"prompt|vocab|length"):
        complete(prompt=prompt)
    assert list(complete().token_ids) == greedy


@pytest.mark.parametrize(
    "option",
    [{}, {"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 30, "top_p": 0.7}],
    ids=str,
)
def test_a_seed_draws_the_same_whatever_others_ask(option, complete):
    """On the lowered path the runtime samples a batch that wants tokens alone, and vLLM's sampler
    one that wants more: the random numbers are the same."""
    drawn = SamplingParams(temperature=1.1, seed=5, max_tokens=12, **option)
    alone = complete(drawn).token_ids
    for other in ({"logprobs": 3}, {"frequency_penalty": 0.5}, {"temperature": 0.7, "seed": 6}):
        found = complete(drawn, SamplingParams(**{"temperature": 0, "max_tokens": 8} | other))
        assert found[0].token_ids == alone, other


# ---- engines of their own: `llm` can't be used after these (see make_engine)


def test_seed_does_not_depend_on_how_the_prompt_is_cut(model, make_engine, complete):
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=12)
    whole = complete(params, prompt=LONG_PROMPT).token_ids
    options = {"max_num_batched_tokens": 16, "skip_tokenizer_init": False}
    with make_engine(model.name_or_path, **options) as llm:
        found = llm.generate({"prompt_token_ids": LONG_PROMPT}, params, use_tqdm=False)
        assert found[0].outputs[0].token_ids == whole


def test_structured_outputs_of_llguidance(model, make_engine):
    options = {"structured_outputs_config": {"backend": "guidance"}, "skip_tokenizer_init": False}
    structure, pattern = STRUCTURES["grammar"]
    params = SamplingParams(temperature=0, max_tokens=9, structured_outputs=deepcopy(structure))
    with make_engine(model.name_or_path, **options) as llm:
        found = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
        assert re.fullmatch(pattern, found[0].outputs[0].text)
