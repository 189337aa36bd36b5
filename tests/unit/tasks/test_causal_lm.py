"""Causal language models: tokens, perplexity, the cache, tied weights, experts."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from autotune.exporters import pretrained
from search_spaces.discovery import discover, skipped
from search_spaces.layer import Layer, LayerKind
from workers import quality
from workers.candidate import Candidate, QualityLimit
from workers.device.placement import placed
from workers.errors import TaskError
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Workload
from workers.model.fingerprint import fingerprint
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split, splits, workloads
from workers.tasks.text import models
from workers.tasks.text.causal_lm import CausalLM, log_probabilities
from workers.tasks.text.decoding import Answer
from workers.tasks.text.experts import Experts, separate_experts
from workers.tasks.text.models import TINY, build_causal_model, encode, encode_first

SMALL = {"prompt_tokens": 16, "output_tokens": 4, "windows": 8, "batch_size": 4}


@pytest.fixture(scope="module", params=TINY)
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(checkpoint: str) -> nn.Module:
    return build_causal_model(checkpoint)


def layers_of(model: nn.Module) -> dict[str, Layer]:
    task = CausalLM(**SMALL)  # all tiny models read bytes
    found = discover(model, lambda m: task.forward(m, torch.cat(list(task.evaluation(Split.EVALUATION)))))
    return {layer.name: layer for layer in found}


def test_accuracy_is_one_over_perplexity(model: nn.Module) -> None:
    task = CausalLM(**SMALL)
    outputs, judged = quality.outputs_and_judged(task, model, Split.HELD_OUT)
    tokens = torch.cat(list(task.evaluation(Split.HELD_OUT)))
    logs = outputs.double().log_softmax(dim=-1)
    each = [float(logs[w, t, tokens[w, t + 1]]) for w in range(8) for t in range(15)]
    assert task.accuracy(judged, Split.HELD_OUT) == pytest.approx(math.exp(sum(each) / len(each)))
    assert torch.equal(judged, quality.judged(task, model, Split.HELD_OUT))


def test_certain_and_right_is_one() -> None:
    task = CausalLM(**SMALL)
    tokens = torch.cat(list(task.evaluation(Split.EVALUATION)))
    logits = 100.0 * nn.functional.one_hot(tokens.roll(-1, dims=1), 256).float()
    assert task.accuracy(log_probabilities(logits, tokens), Split.EVALUATION) == pytest.approx(1.0)


def test_decoding_with_the_cache_writes_what_whole_passes_write(model: nn.Module) -> None:
    task = CausalLM(**SMALL)
    decode, prompts = workloads(task, 2)[Workload.DECODE], task.latency_batch(2)
    expected = prompts
    with torch.inference_mode():
        for _ in range(4):
            expected = torch.cat([expected, task.forward(model, expected)[:, -1:].argmax(dim=-1)], dim=1)
        answer = decode.prepare(model)
        written = [answer.token]
        for _ in range(3):
            decode.run(model, answer)
            written.append(answer.token)
    assert torch.equal(torch.cat([prompts, *written], dim=1), expected)


def test_decoding_begins_again_after_the_output_tokens(model: nn.Module) -> None:
    decode = workloads(CausalLM(**SMALL), 1)[Workload.DECODE]
    with torch.inference_mode():
        answer = decode.prepare(model)
        lengths, tokens = [], []
        for _ in range(9):
            lengths.append(answer.cache.get_seq_length())
            tokens.append(int(answer.token))
            decode.run(model, answer)
    assert lengths == [16, 17, 18, 19] * 2 + [16]
    assert tokens[:4] == tokens[4:8]


def test_a_request_is_a_whole_answer(model: nn.Module) -> None:
    task = CausalLM(**SMALL)
    request, decode = (workloads(task, 2)[name] for name in (Workload.REQUEST, Workload.DECODE))
    with torch.inference_mode():
        answer = decode.prepare(model)
        for _ in range(3):
            decode.run(model, answer)
        given = request.prepare(model)
        whole, again = request.run(model, given), request.run(model, given)
    assert isinstance(whole, Answer)
    assert isinstance(again, Answer)
    assert torch.equal(whole.token, answer.token)
    assert torch.equal(again.token, answer.token)
    assert whole.cache.get_seq_length() == answer.cache.get_seq_length() == 19


def test_tied_weights_stay_as_they_are_and_say_why() -> None:
    layers = layers_of(build_causal_model("tiny-tied-llama"))
    tied = {name: layer.frozen_reason for name, layer in layers.items() if layer.frozen_reason}
    assert set(tied) == {"model.embed_tokens", "lm_head"}
    assert "shares its weight with model.embed_tokens" in str(tied["lm_head"])
    assert layers_of(build_causal_model("tiny-llama"))["lm_head"].frozen_reason is None


def test_tied_weights_count_once_and_stay_tied() -> None:
    settings = MeasurementSettings(threads=1, repeats=20, warmup_s=0.0)
    parameters = {**SMALL, "checkpoint": "tiny-tied-llama"}
    found = Evaluator(WorkerSetup(task="causal-lm", task_parameters=parameters, measurement=settings))
    description, model = found.description, found.reference.prepared.model
    full = {layer.name: "fp32" for layer in description.layers}
    assert description.weight_bytes(full) == sum(p.nbytes for p in model.parameters()) + sum(
        b.nbytes for b in model.buffers()
    )
    found.measure(
        Candidate(number=0, limits={Split.EVALUATION: QualityLimit(least_accuracy=2.0)}, choices={
            layer.name: "int8_dynamic" for layer in description.layers if layer.frozen_reason is None
        })
    )  # fmt: skip
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_experts_are_layers_that_share_a_choice() -> None:
    layers = layers_of(build_causal_model("tiny-mixtral"))
    experts = [layer for name, layer in layers.items() if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    assert {layer.frozen_reason for layer in experts} == {None}
    assert {layer.group for layer in experts} == {
        f"model.layers.{block}.mlp.experts.*.{part}" for block in (0, 1) for part in ("gate_up", "down_proj")
    }


def test_separate_experts_say_the_same_and_share_the_weights() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, sizes = TINY["tiny-mixtral"]
    fused = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).eval()
    tokens = torch.arange(100)[None]
    with torch.inference_mode():
        before = fused(input_ids=tokens).logits
        size = sum(parameter.nbytes for parameter in fused.parameters())
        separate_experts(fused)
        after = fused(input_ids=tokens).logits
    assert isinstance(fused.model.layers[0].mlp.experts, Experts)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert sum(parameter.nbytes for parameter in fused.parameters()) == size


def test_experts_of_another_layout_stay_fused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, sizes = TINY["tiny-mixtral"]
    fused = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
    fused.model.layers[0].mlp.experts.is_transposed = True
    separate_experts(fused)
    assert "model.layers.0.mlp.experts" in skipped(fused)
    kept = [isinstance(layer.mlp.experts, Experts) for layer in fused.model.layers]
    assert kept == [False, True]


def test_projections_of_gpt2_are_linear_layers(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    original = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **tokens)).eval()
    with torch.no_grad():
        original.transformer.h[0].attn.c_attn.bias.normal_()  # its own is zero
    original.save_pretrained(tmp_path)
    model, prompt = build_causal_model(str(tmp_path)), torch.arange(60)[None]
    with torch.inference_mode():
        before, after = original(input_ids=prompt).logits, model(input_ids=prompt).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    kinds = {name: layer.kind for name, layer in layers_of(model).items() if ".h." in name}
    assert len(kinds) == 2 * 4
    assert set(kinds.values()) == {LayerKind.LINEAR}
    assert "transformer.h.0.attn.c_attn.weight among them" in str(pretrained.refusal(model))
    assert pretrained.refusal(original) is None


def test_a_folder_of_safetensors_is_a_checkpoint(tmp_path: Path) -> None:
    original = build_causal_model("tiny-llama")
    original.save_pretrained(tmp_path)
    assert fingerprint(build_causal_model(str(tmp_path))) == fingerprint(original)
    with pytest.raises(TaskError, match=r"cannot load the tokenizer of checkpoint .* give a folder"):
        CausalLM(checkpoint=str(tmp_path)).calibration()


def test_text_and_shifted_text_are_read_in_windows(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcd" * 96)
    (tmp_path / "shifted").write_text("ABCD" * 96)
    task = CausalLM(**SMALL, text=str(tmp_path / "text"), shifted_text=str(tmp_path / "shifted"))
    assert splits(task) == tuple(Split)
    assert splits(CausalLM(**SMALL)) == (Split.EVALUATION, Split.HELD_OUT)
    assert bytes(task.evaluation(Split.EVALUATION)[0][0].tolist()) == b"abcd" * 4
    assert bytes(task.evaluation(Split.SHIFTED)[0][0].tolist()) == b"ABCD" * 4


#: One letter each, so that likelihoods are told apart by hand; and questions of two lengths.
@pytest.mark.parametrize("count", [1, 51, 300, 5000])
def test_a_long_text_is_not_encoded_to_its_end(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ab " * 50 + "a" * 4000 + " b" * 300  # one word is longer than what is cut first
    words = {"ab": 0, "b": 1, "a" * 4000: 2, "?": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    assert torch.equal(encode_first(str(tmp_path), text, count), encode(str(tmp_path), text)[:count])
    lengths = []

    def counted(checkpoint: str, part: str, *, special: bool) -> torch.Tensor:
        lengths.append(len(part))
        return encode(checkpoint, part, special=special)

    monkeypatch.setattr(models, "encode", counted)
    encode_first(str(tmp_path), text, 1)
    assert lengths == [16]


def tokenizer_with(template: str, folder: Path) -> str:
    """Save a tokenizer of letters that puts special tokens around each text as ``template`` says."""
    special = [("<s>", 26), ("</s>", 27)]
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({**letters, **dict(special)}, unk_token="z"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("template", "first"),
    [("$A", []), ("<s> $A", [26]), ("<s> $A </s>", [26]), ("<s> <s> $A", [26, 26]), ("$A </s>", [])],
)
def test_each_window_begins_as_the_tokenizer_begins_a_text(template: str, first: list[int], tmp_path: Path) -> None:
    checkpoint = tokenizer_with(template, tmp_path / "model")
    (tmp_path / "text").write_text("abcdefgh" * 200)
    task = CausalLM(**SMALL | {"checkpoint": checkpoint}, text=str(tmp_path / "text"))
    windows = torch.cat([*task.calibration(), *(batch for split in splits(task) for batch in task.evaluation(split))])
    assert windows.shape[1] == SMALL["prompt_tokens"]
    assert [row[: len(first)] for row in windows.tolist()] == [first] * len(windows)
    rest = {token for row in windows.tolist() for token in row[len(first) :]}
    assert rest == set(range(8)), "no special token inside a window"


QUESTIONS = [
    {"ctx": "two and two are ", "endings": ["four", "five, or six"], "label": 0},
    {"ctx": "grass is", "endings": ["red", "green", "blue"], "label": "1"},
    {"ctx": "water is", "endings": ["dry", "wet"], "label": 1},
]


def questions_file(path: Path, rows: Sequence[object] = QUESTIONS) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_questions_are_scored_by_likelihood_a_character(model: nn.Module, tmp_path: Path) -> None:
    task = CausalLM(**SMALL | {"prompt_tokens": 32}, questions=questions_file(tmp_path / "q.jsonl"))
    with torch.inference_mode():
        scores = quality.judged(task, model, Split.EVALUATION)
        for question, row in zip(QUESTIONS[0::2], scores, strict=True):
            for ending, score in zip(question["endings"], row, strict=True):  # type: ignore[call-overload]
                context = str(question["ctx"]).rstrip().encode()
                tokens = torch.tensor([list(context + b" " + ending.encode())])
                logs = model(input_ids=tokens).logits.double().log_softmax(dim=-1)
                each = [float(logs[0, t - 1, tokens[0, t]]) for t in range(len(context), tokens.shape[1])]
                assert float(score) == pytest.approx(sum(each) / len(ending), rel=1e-4)
        assert quality.judged(task, model, Split.HELD_OUT).shape == (1, 3)


def test_accuracy_is_the_share_of_questions_whose_right_ending_scores_highest(tmp_path: Path) -> None:
    task = CausalLM(**SMALL | {"prompt_tokens": 32}, questions=questions_file(tmp_path / "q.jsonl"))
    for scores, share in (
        ([[-1.0, -2.0], [-2.0, -1.0]], 1.0),
        ([[-1.0, -2.0], [-1.0, -2.0]], 0.5),
        ([[math.nan, math.nan], [math.nan, -1.0]], 0.5),
        ([[math.nan, -2.0], [-math.inf, -math.inf]], 0.0),
    ):
        assert task.accuracy(torch.tensor(scores), Split.EVALUATION) == share
    assert task.accuracy(torch.tensor([[-2.0, -1.0, -3.0]]), Split.HELD_OUT) == 1.0


def test_questions_decide_accuracy_and_the_text_divergence(tmp_path: Path) -> None:
    # One has each of two letters as its right ending, so half are right whatever the model prefers.
    rows = [{"ctx": "ab", "endings": ["a", "b"], "label": label} for label in (0, 0, 1, 1)]
    (tmp_path / "shifted").write_text("ABCD" * 96)
    parameters = SMALL | {
        "questions": questions_file(tmp_path / "q.jsonl", rows),
        "shifted_text": str(tmp_path / "shifted"),
        "shifted_questions": questions_file(tmp_path / "s.jsonl", rows[:2]),
    }
    settings = MeasurementSettings(threads=1, repeats=20, warmup_s=0.0)
    found = Evaluator(WorkerSetup(task="causal-lm", task_parameters=parameters, measurement=settings))
    accuracy, divergence = found.quality.of({"lm_head": "int8_dynamic"}, Split.EVALUATION)
    assert accuracy == 0.5
    assert 0.0 < divergence < 0.1
    assert found.quality.of({}, Split.SHIFTED)[0] in (0.0, 1.0)
    with_questions = CausalLM(**SMALL, questions=str(parameters["questions"]))
    assert placed(with_questions, "meta").forward_and_generate is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ctx": "a", "endings": ["b", "c"]', r"line 2 of the questions '.*' must be an object with the text 'ctx'"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', r"correct ending counted from 0, but got '.*2}'"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": ""}', "line 2"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": true}', "line 2"),
        ('{"ctx": "a", "endings": ["b"], "label": 0}', "line 2"),
        ('{"ctx": "a", "endings": ["b", 3], "label": 0}', "line 2"),
        ('{"ctx": " ", "endings": ["b", "c"], "label": 0}', "line 2"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 0}', "line 2"),
        ("[1]", "line 2"),
        ('{"ctx": "aaaaaaaaaaaaaaa", "endings": ["b", "c"], "label": 0}',
         "'a+' has 17 tokens with an ending, but prompt_tokens is 16; raise it"),
    ],
)  # fmt: skip
def test_wrong_questions_are_explained_before_the_model_is_loaded(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"ctx": "a", "endings": ["b", "c"], "label": 0}}\n{line}\n')
    with pytest.raises(TaskError, match=message):
        CausalLM(**SMALL, questions=str(tmp_path / "q.jsonl")).build_model()


def test_too_few_questions_and_ones_without_shifted_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"needs at least 2 questions, but .* has 1"):
        CausalLM(**SMALL, questions=questions_file(tmp_path / "q.jsonl", QUESTIONS[:1])).build_model()
    with pytest.raises(TaskError, match="cannot read the questions '/no/such'"):
        CausalLM(questions="/no/such").build_model()
    with pytest.raises(TaskError, match="'shifted_questions' is required with both"):
        CausalLM(questions="a", shifted_text="b")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"checkpoint": "no/such"},
            r"cannot load the tokenizer of checkpoint 'no/such': .*; give a folder of safetensors",
        ),
        ({"text": "/no/such"}, "cannot read the text '/no/such'"),
        (
            {"windows": 1 << 20},
            r"the text has \d+ tokens, but 3145728 windows of 64 tokens need 201326592; give a longer",
        ),
        ({"prompt_tokens": 1}, "'prompt_tokens' must be an integer from 2"),
        ({"text": 3}, "'text' must be text, but got 3"),
    ],
)
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def use() -> None:
        task = CausalLM(**parameters)  # type: ignore[arg-type]
        task.calibration()
        task.build_model()

    with pytest.raises(TaskError, match=message):
        use()


def test_experts_are_measured_quantized() -> None:
    parameters = {**SMALL, "checkpoint": "tiny-mixtral", "windows": 32}
    setup = WorkerSetup(
        task="causal-lm", task_parameters=parameters, measurement=MeasurementSettings(threads=1, repeats=20)
    )
    found = Evaluator(setup)
    choices = {layer.name: "int8_static" for layer in found.description.layers if ".experts." in layer.name}
    measurement = found.measure(
        Candidate(number=0, choices=choices, limits={Split.EVALUATION: QualityLimit(least_accuracy=2.0)})
    )
    assert len(choices) == 24
    assert 0.0 < measurement.divergence < 0.01
    assert measurement.weight_bytes < 0.7 * found.description.weight_bytes(
        {layer.name: "fp32" for layer in found.description.layers}
    )


def test_every_workload_is_timed_and_the_cache_is_memory_at_work() -> None:
    settings = MeasurementSettings(threads=1, repeats=20, warmup_s=0.0, workloads=(Workload.PREFILL, Workload.DECODE))
    parameters = {**SMALL, "prompt_tokens": 128}
    found = Evaluator(WorkerSetup(task="causal-lm", task_parameters=parameters, measurement=settings))
    assert found.description.workloads == (Workload.PREFILL, Workload.DECODE, Workload.REQUEST)
    measurement = found.measure(Candidate(number=0, choices={"lm_head": "int8_dynamic"}))
    assert [samples.workload for samples in measurement.latency] == [
        Workload.FORWARD,
        Workload.PREFILL,
        Workload.DECODE,
    ]
    assert all(len(samples.candidate_ms) >= 20 for samples in measurement.latency)
    only = found.measure(Candidate(number=1, choices={"lm_head": "int8_dynamic"}, workloads=(Workload.DECODE,)))
    assert [samples.workload for samples in only.latency] == [Workload.DECODE]
    cache = 2 * 2 * 128 * 2 * 16 * 4  # keys and values, layers, tokens, heads, width of a head, bytes
    assert measurement.working_bytes is not None
    assert measurement.working_bytes > cache


@pytest.mark.parametrize("outside", ["/etc/passwd", "../secret.txt", "link.txt"])
def test_jobs_of_others_read_no_files_outside_the_data_folder(
    outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.txt").write_text("secret " * 1000)
    (data / "link.txt").symlink_to(tmp_path / "secret.txt")
    (data / "inside.txt").write_text("hello " * 1000)
    monkeypatch.setenv("AUTOTUNE_DATA", str(data))
    assert len(CausalLM(**SMALL, text="inside.txt").calibration())
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        CausalLM(**SMALL, text=outside).calibration()
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        CausalLM(**SMALL, questions=outside).build_model()
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        build_causal_model(outside)


def test_a_gguf_file_is_dequantized_with_its_tokenizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build_causal_model("tiny-llama")
    file = write_gguf(tmp_path / "tiny.gguf", model, quantized="model.layers.0.mlp.down_proj.weight")
    loaded = build_causal_model(file)
    for name, weight in model.state_dict().items():
        rounding = weight.abs().max() / 127 if "0.mlp.down_proj" in name else 0.0
        assert (loaded.state_dict()[name] - weight).abs().max() <= rounding
    with pytest.raises(AssertionError):
        torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    assert encode(file, "ab").tolist()[-2:] == [3 + ord("a"), 3 + ord("b")]
    assert not capfd.readouterr().err


def test_a_gguf_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none\.gguf.*a GGUF file"):
        build_causal_model(f"{tmp_path}/none.gguf")


def write_gguf(path: Path, model: nn.Module, *, quantized: str) -> str:
    """Write a model with a tokenizer of bytes as llama.cpp does, one weight in 8 bits."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(253))])
    writer.add_token_scores([0.0] * 256)
    writer.add_token_types([2, 3, 3, *([6] * 253)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name.partition("_proj")[0][-1])
        if "self_attn" in name and heads:  # its rotary embeddings want the halves of a head interleaved
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if name == quantized else gguf.GGMLQuantizationType.F32
        values = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
