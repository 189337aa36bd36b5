"""Read sentences of the Lee corpus aloud with Debian's speech synthesizer: speech whose transcript is known.

    python -m benchmarks.models.speech FOLDER

Three voices of flite take turns, and sox converts what they say to the wav files that `speech-seq2seq` reads.
"""

import argparse
import csv
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workers.tasks.speech.audio import FILE, RATE, TABLE, TEXT
from workers.tasks.text.lee_corpus import background_documents

VOICES = ("slt", "rms", "awb")
#: Sentences that are read aloud.
COUNT = 96
#: Words per sentence: enough to be understood in context, and fewer seconds than Whisper's window.
_WORDS = range(8, 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    given = parser.parse_args()
    write(given.folder, given.count)


def write(folder: Path, count: int = COUNT) -> None:
    """Write ``count`` spoken sentences into ``folder``, as wav files with a table of transcripts.

    Raises:
        SystemExit: if flite or sox is not installed, or fails.
    """
    absent = [program for program in ("flite", "sox") if shutil.which(program) is None]
    if absent:
        raise SystemExit(
            f"speech needs the programs flite and sox, but {' and '.join(absent)} cannot be found. On Debian or "
            "Ubuntu: sudo apt-get install flite sox"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, sentence in enumerate(sentences(background_documents())[:count]):
        # Splits take every third file, so the voice changes every third file too, and every split hears all voices.
        voice = VOICES[number // 3 % len(VOICES)]
        rows.append({FILE: f"{number:03}-{voice}.wav", TEXT: sentence})
        _speak(sentence, voice, folder / rows[-1][FILE])
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [FILE, TEXT])
        table.writeheader()
        table.writerows(rows)


def sentences(documents: Sequence[str]) -> list[str]:
    """Return the sentences, without repetition, that are read aloud as they are written: without digits or symbols."""
    found = [sentence for document in documents for sentence in re.findall(r"(?<!\S)[A-Z][^.?!]+[.?!](?!\S)", document)]
    plain = [sentence for sentence in found if re.fullmatch(r"[A-Za-z ,']+[.?!]", sentence)]
    return [sentence for sentence in dict.fromkeys(plain) if len(sentence.split()) in _WORDS]


def _speak(text: str, voice: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        spoken = str(Path(scratch, "spoken.wav"))
        # Dithering is random, and would make another file of each call.
        converted = ["sox", "-D", spoken, "-b", "16", "-c", "1", "-r", str(RATE), str(path)]
        for command in (["flite", "-voice", voice, "-t", text, "-o", spoken], converted):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{command[0]} cannot read {text!r} aloud: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
