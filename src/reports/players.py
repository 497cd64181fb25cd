"""Audio players of pages: their sound is linked, or embedded in a form that all browsers play."""
import io
import itertools
import math
import os
from html import escape
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote_from_bytes

import soundfile

from audio.fbank import SAMPLE_RATE
from audio.formats import AudioError, open_audio
from audio.reading import RESAMPLER_MARGIN_SECONDS, WindowReader
from audio.shards import split_path
from reports.html import Html, data_address

# What Chromium, Firefox and Safari play: container -> (media type, codecs), by the names that
# libsndfile (in capitals) and FFmpeg give them.
WAV = 'audio/wav', {'PCM_U8', 'PCM_16', 'PCM_24', 'FLOAT'}
PLAYED = {'WAV': WAV, 'WAVEX': WAV,
          'FLAC': ('audio/flac', {'PCM_S8', 'PCM_16', 'PCM_24'}),
          'OGG': ('audio/ogg', {'VORBIS', 'OPUS'}),
          'mp3': ('audio/mpeg', {'mp3', 'mp3float'}),
          'aac': ('audio/aac', {'aac'}),
          'mov,mp4,m4a,3gp,3g2,mj2': ('audio/mp4', {'aac', 'mp3', 'mp3float'}),
          'matroska,webm': ('audio/webm', {'opus', 'vorbis'})}
PLAYED_RATES = 8000, 192_000  # Hz, lowest and highest
PLAYED_CHANNELS = 8
BLOCK_SECONDS = 60  # converted at a time: an hour takes no more memory than a minute
ROUNDING_SECONDS = 1e-3


class Clip(NamedTuple):
    """A part of a recording.

    Attributes:
        name: what a page calls it.
        path: the file, or None if it is not known.
        start: the second at which the part begins.
        seconds: its greatest length.
    """
    name: str
    path: str | None = None
    start: float = 0.0
    seconds: float = math.inf


def media_type(path: str | os.PathLike) -> str | None:
    """Return the media type of a file that browsers play, such as audio/flac, or None."""
    if split_path(path):  # inside a shard, where no browser finds it
        return None
    try:
        with open_audio(path) as reader:
            (container, codec), rate = reader.encoding, reader.samplerate
            channels = reader.channels
    except AudioError:
        return None
    its_type, codecs = PLAYED.get(container, ('', set()))
    lowest, highest = PLAYED_RATES
    is_played = codec in codecs and lowest <= rate <= highest and channels <= PLAYED_CHANNELS
    return its_type if is_played else None


def address(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the address of a file for a page in a folder: relative to it if the file is below."""
    file, folder = Path(os.path.abspath(path)), os.path.abspath(folder)
    if file.is_relative_to(folder):
        # Through bytes, since a name need not be UTF-8. A colon is quoted, too: it ends a scheme.
        return quote_from_bytes(os.fsencode(file.relative_to(folder).as_posix()))
    return file.as_uri()


def played_rate(sample_rate: int) -> int:
    """Return the rate that browsers play and that is nearest to a model's, both in Hz."""
    lowest, highest = PLAYED_RATES
    return min(max(sample_rate, lowest), highest)


def write_flac(path: str | os.PathLike, target: str | os.PathLike | BinaryIO, start: float = 0.0,
               seconds: float = math.inf, sample_rate: int = SAMPLE_RATE) -> None:
    """Write what the model hears of a recording as FLAC: mono, at the model's sample rate.

    Browsers play FLAC. If they do not play this rate, the file has the nearest one that they play.

    Args:
        path: the recording.
        target: the file to write, a path or an open binary file.
        start: seconds to skip.
        seconds: how much to convert at most from there on.
        sample_rate: of the model, in Hz. The file has played_rate(sample_rate).

    Raises:
        AudioError: there is no sound.
        OSError: the target cannot be written.
    """
    rate = played_rate(sample_rate)
    try:
        with soundfile.SoundFile(target, 'w', rate, 1, 'PCM_16', format='FLAC') as file:
            for block in _blocks(path, start, seconds, rate):
                file.write(block)
    except soundfile.LibsndfileError as error:
        raise OSError(f'libsndfile cannot write FLAC: {error.error_string}') from None


def _blocks(path, start, seconds, rate):
    """Yield the waveform of a part of a recording block by block. Raises AudioError."""
    with WindowReader() as reader:
        for done in itertools.count(step=BLOCK_SECONDS):
            wanted = min(BLOCK_SECONDS, seconds - done)
            waveform, end = reader.load(path, rate, start=start + done,
                                        seconds=wanted + RESAMPLER_MARGIN_SECONDS)
            if not done and not len(waveform):
                raise AudioError(f'the audio file {path} holds no samples after {start:g} s')
            yield waveform[:round(wanted * rate)].numpy()
            has_ended = end is not None and end <= start + done + wanted
            if has_ended or done + wanted > seconds - ROUNDING_SECONDS:
                return


def flac(path: str | os.PathLike, start: float = 0.0, seconds: float = math.inf,
         sample_rate: int = SAMPLE_RATE) -> bytes:
    """Return what write_flac writes. Raises AudioError."""
    file = io.BytesIO()
    write_flac(path, file, start, seconds, sample_rate)
    return file.getvalue()


def with_player(clip: Clip, folder: Path, embed: bool = False, sample_rate: int = SAMPLE_RATE
                ) -> Html:
    """Return the name of a clip and below it a player, if browsers can play it.

    Args:
        clip: it is played from its start to its end.
        folder: that of the page.
        embed: put the sound into the page, as the model hears it; else link the file.
        sample_rate: of the model, in Hz.
    """
    source = _embedded(clip, sample_rate) if embed else _linked(clip, folder)
    name = escape(clip.name)
    if not source:
        return Html(name)
    # preload: a page of many players must not load all sounds at once.
    return Html(f'{name}<audio controls preload="none" aria-label="{name}" '
                f'src="{escape(source)}"></audio>')


def _linked(clip: Clip, folder: Path) -> str | None:
    """Return the address of a clip in its file, or None if browsers do not play the file."""
    if clip.path is None or not media_type(clip.path):
        return None
    end = f',{clip.start + clip.seconds:.10g}' if clip.seconds < math.inf else ''
    return f'{address(clip.path, folder)}#t={clip.start:.10g}{end}'


def _embedded(clip: Clip, sample_rate: int) -> str | None:
    """Return an address that holds the sound of a clip, or None if it cannot be read."""
    if clip.path is None:
        return None
    try:
        return data_address(flac(clip.path, clip.start, clip.seconds, sample_rate), 'audio/flac')
    except AudioError:
        return None
