"""Speech audio: folders of wav files with a table of transcripts, in the layout of `datasets`, and tones."""

import csv
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.errors import TaskError
from workers.tasks.checks import contained

#: Samples from -1 to 1, shape ``(samples,)``.
Waveform = npt.NDArray[np.float32]

#: Samples per second.
RATE = 16_000
#: File name of the table, and its columns.
TABLE, FILE, TEXT = "metadata.csv", "file_name", "transcription"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Utterance:
    """The audio of one file, or a piece of it, with its transcript."""

    name: str
    waveform: Waveform
    #: None if the folder has no table.
    text: str | None = None


def read_folder(folder: str) -> list[Utterance]:
    """Return the utterances of a folder: those in its table in order, or all its wav files by name.

    Raises:
        TaskError: if a file is missing, is outside the data folder, or is not 16-bit mono at 16 kHz.
    """
    root = contained("audio", folder)
    table = root / TABLE
    try:
        if not table.exists():
            names = sorted(path.name for path in root.iterdir() if path.suffix.lower() == ".wav")
            return [Utterance(name=name, waveform=_waveform(folder, name)) for name in names]
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the audio {folder!r}: {error}; give a folder of wav files") from None
    if any(not row.get(FILE) or row.get(TEXT) is None for row in rows):
        raise TaskError(f"every line of {str(table)!r} must have the columns {FILE} and {TEXT}; add them to its header")
    return [Utterance(name=row[FILE], waveform=_waveform(folder, row[FILE]), text=row[TEXT]) for row in rows]


def pieces(utterances: Sequence[Utterance], most: int) -> list[Utterance]:
    """Return utterances cut into pieces of at most ``most`` samples.

    Raises:
        TaskError: if an utterance with a transcript is longer.
    """
    found = []
    for utterance in utterances:
        length = len(utterance.waveform)
        if length > most and utterance.text is not None:
            raise TaskError(
                f"{utterance.name!r} lasts {length / RATE:.1f} s, but a chunk {most / RATE:g} s, and its transcript "
                "cannot be cut with it; cut both yourself, raise chunk_seconds, or remove the table"
            )
        cut = (utterance.waveform[start : start + most] for start in range(0, length, most))
        found += [Utterance(name=utterance.name, waveform=piece, text=utterance.text) for piece in cut]
    return found


def tones(count: int, samples: int) -> list[Utterance]:
    """Return reproducible sounds: a gliding tone, joined by a second one."""
    # The legacy generator, because numpy promises that its stream never changes.
    draw = np.random.RandomState(0)
    time = np.arange(samples) / RATE
    found = []
    for number in range(count):
        begin, end, second = draw.uniform(100.0, 4000.0, size=3)
        loudness, joins = draw.uniform(0.1, 0.9), draw.uniform(0.0, time[-1])
        glide = np.sin(2.0 * np.pi * (begin + (end - begin) * time / (2.0 * time[-1])) * time)
        waveform = loudness * glide + (1.0 - loudness) * np.sin(2.0 * np.pi * second * time) * (time > joins)
        found.append(Utterance(name=f"tones {number}", waveform=waveform.astype(np.float32)))
    return found


def _waveform(folder: str, name: str) -> Waveform:
    path = contained("audio", str(Path(folder, name)))
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            frames = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise TaskError(f"cannot read the audio {str(path)!r}: {error}; give wav files of plain samples") from None
    if form != (1, 16, RATE):
        raise TaskError(
            f"audio must have 1 channel of 16 bits at {RATE} Hz, but {str(path)!r} has {form[0]} of {form[1]} bits at "
            f"{form[2]} Hz; convert it with: ffmpeg -i {name} -ac 1 -ar {RATE} -c:a pcm_s16le converted.wav"
        )
    return np.frombuffer(frames, dtype="<i2").astype(np.float32) / 32768.0
