"""Speech to text with Whisper's architecture: word error rate, time to first token, time per output token."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from workers.device.placement import beside
from workers.errors import TaskError
from workers.measurement import Workload
from workers.task import OutputKind, Split, Timed
from workers.tasks.checks import extra_packages, require_integer, require_number, require_text
from workers.tasks.speech import generation
from workers.tasks.speech.audio import RATE, Utterance, pieces, read_folder, tones
from workers.tasks.speech.models import TINY, Speech, build_speech_model, normal, speech_of
from workers.tasks.text.decoding import Answer, generating

#: The model's inputs: ``input_features``, shape ``(chunks, mel bins, frames)``, and ``decoder_input_ids``.
Batch = dict[str, torch.Tensor]

#: Minimum number of chunks: at least one each for calibration and both splits.
_LEAST_CHUNKS = 3
#: Chunks whose answers show how a model begins them.
_ASKED = 5


@dataclass(frozen=True, kw_only=True)
class SpeechSeq2Seq:
    """Speech to text with Whisper's architecture; accuracy is 1 - word error rate, at least 0.

    Greedily generated text is compared with the transcripts or, without transcripts, token by token with the output of
    full precision. Chunks of audio alternate between calibration, evaluation and held-out data. Logits are those of the
    next tokens in the transcript, or in the output of full precision.
    """

    #: A folder of safetensors, a name on the hub, or ``tiny-whisper``.
    checkpoint: str = "tiny-whisper"
    #: A folder of wav files with or without ``metadata.csv``; empty for tones, for the tiny model.
    audio: str = ""
    #: Language of the speech, such as ``en``; required for multilingual models, empty for others.
    language: str = ""
    #: Seconds of audio per chunk; 0 for the model's full window.
    chunk_seconds: float = 0.0
    #: Maximum number of tokens generated per chunk.
    output_tokens: int = 24
    #: Maximum number of chunks each for calibration, evaluation and held-out data.
    chunks: int = 64
    #: Chunks per forward pass in evaluation and calibration. Each fills 1,500 positions of Whisper's encoder, so a few
    #: occupy the processor; more would only take more memory, most of all in probing.
    batch_size: int = 4

    output_kind = OutputKind.LOGITS

    def __post_init__(self) -> None:
        for name in ("checkpoint", "audio", "language"):
            require_text(name, getattr(self, name))
        for name, low in (("output_tokens", 1), ("chunks", 1), ("batch_size", 1)):
            require_integer(name, getattr(self, name), low=low, high=1 << 20)
        require_number("chunk_seconds", self.chunk_seconds, low=0.0, high=3600.0)
        if self.checkpoint not in TINY and not self.audio:
            raise TaskError(
                f"checkpoint {self.checkpoint!r} needs a folder of wav files; give it as the parameter audio"
            )

    def build_model(self) -> nn.Module:
        """Return the checkpoint's model in fp32."""
        return build_speech_model(self.checkpoint)

    def calibration(self) -> Sequence[Batch]:
        """Return every third chunk."""
        return self._batches(0)

    def evaluation(self, split: Split) -> Sequence[Batch]:
        """Return every third chunk, starting with a different one per split."""
        return self._batches(_part(split))

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of the answers, shape ``(chunks, output tokens, vocabulary)``; 0 after their end."""
        return self._of_answers(model(**batch, use_cache=False).logits, batch)

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        """Return the tokens that the model generates greedily, shape ``(chunks, output tokens)``.

        A model of transformers generates with its cache. A deployed model may lack one: see
        ``generation.in_parallel``.
        """
        return torch.cat([self._generated(model, beside(model, batch)) for batch in self.evaluation(split)])

    def forward_and_generate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of ``forward`` and the tokens of ``generate`` for one batch, which lies beside the model.

        A model of transformers encodes each chunk once for both. Others have no encoder that could be run alone.
        """
        if not generation.has_cache(model):
            return self.forward(model, batch), self._generated(model, batch)
        passed = model(**batch, use_cache=False)
        encoded = passed.encoder_last_hidden_state
        tokens = generation.with_cache(
            model, batch["input_features"], self._speech, self.output_tokens, encoded=encoded
        )
        return self._of_answers(passed.logits, batch), tokens

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        """Return 1 - word error rate of the generated tokens, or 0 if there are more errors than words."""
        with extra_packages():
            from jiwer import wer
        part = _part(split)
        texts = [self._chunks[index].text for index in range(part, len(self._chunks), 3)]
        if None in texts:
            expected, generated = (_numbers(tokens, self._speech.end) for tokens in (self._tokens[part::3], outputs))
        else:
            expected = [normal(str(text)) for text in texts]
            generated = [normal(self._speech.decode(tokens)) for tokens in outputs.tolist()]
        return max(0.0, 1.0 - float(wer(expected, generated)))

    def latency_batch(self, batch_size: int) -> Batch:
        """Return calibration chunks, repeated if there are too few."""
        return self._batch(3 * (torch.arange(batch_size) % math.ceil(len(self._chunks) / 3)))

    def workloads(self, batch_size: int) -> Mapping[Workload, Timed]:
        """Return prefill, which encodes chunks, decode and request, for answers of ``output_tokens`` tokens."""
        batch = self.latency_batch(batch_size)
        prefix = batch["decoder_input_ids"][:, : len(self._speech.prefix)]

        def begin(model: nn.Module, features: torch.Tensor) -> Answer:
            return generation.begin(model, features, prefix=prefix)[1]

        return generating(batch["input_features"], begin, self.output_tokens)

    @functools.cached_property
    def _speech(self) -> Speech:
        speech = speech_of(self.checkpoint, self.language)
        most = speech.most_tokens - len(speech.prefix)
        if self.output_tokens > most:
            raise TaskError(
                f"task parameter 'output_tokens' must be at most {most}, the tokens that {self.checkpoint!r} has "
                f"positions for after its prompt, but got {self.output_tokens}"
            )
        return speech

    @functools.cached_property
    def _chunks(self) -> list[Utterance]:
        seconds = self.chunk_seconds or self._speech.window_s
        if seconds > self._speech.window_s:
            raise TaskError(
                f"task parameter 'chunk_seconds' must be at most {self._speech.window_s}, the window of "
                f"{self.checkpoint!r} in seconds, but got {seconds:g}"
            )
        most = int(seconds * RATE)
        found = pieces(read_folder(self.audio), most) if self.audio else tones(3 * self.chunks, most)
        if len(found) < _LEAST_CHUNKS:
            raise TaskError(
                f"at least {_LEAST_CHUNKS} chunks are needed, for calibration, evaluation and held-out data, but the "
                f"audio {self.audio!r} has {len(found)}; give more or longer files"
            )
        return found[: 3 * self.chunks]

    @functools.cached_property
    def _features(self) -> torch.Tensor:
        return self._speech.features([chunk.waveform for chunk in self._chunks])

    @functools.cached_property
    def _tokens(self) -> torch.Tensor:
        """Tokens after the prefix, shape ``(chunks, output tokens)``, padded with the end token."""
        if self._chunks[0].text is None:
            model = self.build_model()
            with torch.inference_mode():
                parts = torch.split(self._features, self.batch_size)
                return torch.cat(
                    [generation.with_cache(model, part, self._speech, self.output_tokens) for part in parts]
                )
        before = " " if self._begins_with_space() else ""
        rows = [self._speech.encode(before + str(chunk.text).strip()) for chunk in self._chunks]
        for chunk, row in zip(self._chunks, rows, strict=True):
            if len(row) >= self.output_tokens:
                raise TaskError(
                    f"the transcript of {chunk.name!r} has {len(row)} tokens plus an end token, but output_tokens is "
                    f"{self.output_tokens}; raise it"
                )
        return torch.tensor([[*row, *[self._speech.end] * (self.output_tokens - len(row))] for row in rows])

    def _of_answers(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the logits from the first token of the answers on, 0 after the answers' end."""
        written = len(self._speech.prefix) - 1
        ended = batch["decoder_input_ids"][:, written:] == self._speech.end
        return logits[:, written:].masked_fill(ended.unsqueeze(-1), 0.0)

    def _generated(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        if generation.has_cache(model):
            return generation.with_cache(model, batch["input_features"], self._speech, self.output_tokens)
        return generation.in_parallel(functools.partial(self.forward, model), batch, self._speech)

    def _begins_with_space(self) -> bool:
        """Return whether the model begins most answers with a space: published checkpoints do, many tuned ones do not.

        Behind a transcript that begins otherwise, the model would be judged where its own answers never lead.
        """
        model = self.build_model()
        with torch.inference_mode():
            begun = generation.with_cache(model, self._features[:_ASKED], self._speech, 1)
        return 2 * sum(self._speech.decode(tokens).startswith(" ") for tokens in begun.tolist()) > len(begun)

    def _batches(self, part: int) -> list[Batch]:
        numbers = torch.arange(part, len(self._chunks), 3)
        return [self._batch(few) for few in torch.split(numbers, self.batch_size)]

    def _batch(self, numbers: torch.Tensor) -> Batch:
        return {
            "input_features": self._features[numbers],
            "decoder_input_ids": generation.decoder_inputs(self._speech.prefix, self._tokens[numbers]),
        }


def _part(split: Split) -> int:
    return 1 if split is Split.EVALUATION else 2


def _numbers(tokens: torch.Tensor, end: int) -> list[str]:
    """Return the tokens of each answer as words."""
    return [" ".join(str(token) for token in row if token != end) for row in tokens.tolist()]
