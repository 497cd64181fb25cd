"""Write files of every kind that people have: formats, wrong headers, broken ends."""
import io
import os
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE, SECONDS = 16000, 4.0
_t = np.arange(int(RATE * SECONDS)) / RATE
# A rising tone, so that no two moments sound the same. 16-bit numbers, so that many codecs keep
# it exactly.
SOUND = np.round(13000 * np.sin(2 * np.pi * (300 * _t + 30 * _t ** 2))) / 32768
CUT = 0.65  # of its bytes remain in a file that was cut off


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        make: a function that returns the bytes of such a file.
        exact: whether it keeps the samples exactly.
        whole: whether it is complete and not damaged.
    """
    make: object
    exact: bool = False
    whole: bool = True


def encode(codec, format, *, rate=RATE, layout='mono', bit_rate=None, video=False, **options):
    """Return the bytes of SOUND in a container that PyAV writes.

    Args:
        bit_rate: in bits per second, or 'variable'.
        video: add a video of grey pictures.
        options: of the container.
    """
    import av
    flags = {'flags': 'qscale', 'global_quality': '200'} if bit_rate == 'variable' else {}
    # In a real file: some formats go back to their beginning when they are written.
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'file')
        with av.open(path, 'w', format=format, container_options=options) as container:
            pictures = container.add_stream('mpeg4', rate=5, width=32, height=32) if video else None
            sound = container.add_stream(codec, rate=rate, layout=layout, options=flags)
            if isinstance(bit_rate, int):
                sound.bit_rate = bit_rate
            if video:
                add_pictures(container, pictures)
            add_sound(container, sound, rate)
        return Path(path).read_bytes()


def add_pictures(container, stream):
    """Encode grey pictures, each lighter than the one before, for SECONDS."""
    import av
    for i in range(int(5 * SECONDS)):
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8))
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))


def add_sound(container, stream, rate):
    """Encode SOUND at a rate, in frames as long as the codec wants them."""
    import av
    frame = av.AudioFrame.from_ndarray(SOUND[None].astype(np.float32), 'fltp', 'mono')
    frame.sample_rate, frame.pts = RATE, 0
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, context.layout, rate,
                                  frame_size=context.frame_size)
    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
        container.mux(stream.encode(part))


def write(format, subtype=None, samples=SOUND, rate=RATE):
    """Return the bytes of a file that libsndfile writes, of SOUND by default."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def cut(data):
    """Return the bytes of a file that was cut off."""
    return data[:int(CUT * len(data))]


def patched(data, offset, value):
    """Return bytes of which those from `offset` on are replaced by `value`."""
    return data[:offset] + value + data[offset + len(value):]


def damaged_flac():
    """Return a FLAC with noise in the middle."""
    data = write('FLAC')
    return patched(data, len(data) // 2, np.random.default_rng(0).bytes(1000))


def flac_of_unknown_length():
    """Return a FLAC as `ffmpeg -f flac -` leaves it: 36 bits of the length are 0."""
    data = write('FLAC')
    return patched(data, 21, bytes([data[21] & 0xF0, 0, 0, 0, 0]))


def wav_of_size(size):
    """Return a WAV whose header says that it has `size` bytes of samples."""
    return patched(write('WAV'), 40, struct.pack('<I', size))


def with_text_chunk(wav):
    """Return a WAV with a chunk of text after its sound, as editors write it."""
    chunk = b'LIST' + struct.pack('<I', 8000) + b'INFO' + b'some text, ' * 727
    data = wav + chunk[:8008]
    return patched(data, 4, struct.pack('<I', len(data) - 8))


def rf64_of_a_recorder_without_power():
    """Return an RF64 whose three sizes are 0."""
    data = write('RF64')
    return patched(data, data.index(b'ds64') + 8, bytes(24))


SUBTYPES = {
    'WAV': 'PCM_U8 PCM_24 FLOAT DOUBLE ULAW IMA_ADPCM MS_ADPCM GSM610 G721_32 NMS_ADPCM_32'.split(),
    'AIFF': ['PCM_16', 'GSM610'], 'AU': ['PCM_16', 'G721_32', 'G723_40'], 'W64': ['PCM_16'],
    'CAF': ['PCM_16', 'ALAC_16'], 'NIST': ['PCM_16'], 'RF64': ['PCM_16']}
LOSSY = ('PCM_U8', 'ULAW', 'ADPCM', 'GSM', 'G72')

KINDS = {
    'm4a': Kind(lambda: encode('aac', 'ipod')),
    'stereo.m4a': Kind(lambda: encode('aac', 'ipod', rate=44100, layout='stereo')),
    'alac.m4a': Kind(lambda: encode('alac', 'ipod'), exact=True),
    '7.1.m4a': Kind(lambda: encode('aac', 'ipod', layout='7.1')),
    'mp4': Kind(lambda: encode('aac', 'mp4', video=True)),
    'mov': Kind(lambda: encode('pcm_s16le', 'mov'), exact=True),
    'mkv': Kind(lambda: encode('aac', 'matroska', video=True)),
    'flac.mkv': Kind(lambda: encode('flac', 'matroska'), exact=True),
    'webm': Kind(lambda: encode('libopus', 'webm', rate=48000)),
    'tta': Kind(lambda: encode('tta', 'tta')),
    'wv': Kind(lambda: encode('wavpack', 'wv')),
    'wma': Kind(lambda: encode('wmav2', 'asf', bit_rate=128000)),
    '3gp': Kind(lambda: encode('libopencore_amrnb', '3gp', rate=8000, bit_rate=7950)),
    'amr': Kind(lambda: encode('libopencore_amrnb', 'amr', rate=8000, bit_rate=7950)),
    'aac': Kind(lambda: encode('aac', 'adts')),
    'ts': Kind(lambda: encode('aac', 'mpegts')),
    'mp3': Kind(lambda: encode('libmp3lame', 'mp3')),
    'variable.mp3': Kind(lambda: encode('libmp3lame', 'mp3', bit_rate='variable')),
    'variable, no Xing.mp3': Kind(lambda: encode('libmp3lame', 'mp3', bit_rate='variable',
                                                 write_xing='0')),
    'ogg': Kind(lambda: write('OGG', 'VORBIS')),
    'opus': Kind(lambda: write('OGG', 'OPUS')),
    'flac': Kind(lambda: write('FLAC'), exact=True),
    'wav': Kind(lambda: write('WAV'), exact=True),
    'stereo.wav': Kind(lambda: write('WAV', samples=np.stack([SOUND, SOUND], axis=1)), exact=True),
    **{f'{subtype}.{name.lower()}': Kind(lambda name=name, subtype=subtype: write(name, subtype),
                                         exact=not any(word in subtype for word in LOSSY))
       for name, subtypes in SUBTYPES.items() for subtype in subtypes},
    'tags behind.wav': Kind(lambda: with_text_chunk(write('WAV')), exact=True),
    'ADPCM of FFmpeg alone, tags behind.wav':
        Kind(lambda: with_text_chunk(encode('adpcm_yamaha', 'wav'))),
    'two streams.opus': Kind(lambda: write('OGG', 'OPUS', SOUND[:24000])
                             + write('OGG', 'OPUS', SOUND[24000:])),
    'unknown length.flac': Kind(flac_of_unknown_length, exact=True),
    'size 0.wav': Kind(lambda: wav_of_size(0), exact=True),
    'size of a half.wav': Kind(lambda: wav_of_size(64000), exact=True),
    # The bytes after the size begin with 0, as if a chunk without a name followed.
    'size of a half, 24 bits.wav': Kind(lambda: patched(write('WAV', 'PCM_24'), 40,
                                                        struct.pack('<I', 96000)), exact=True),
    'to a pipe.wav': Kind(lambda: wav_of_size(2 ** 32 - 1), exact=True),
    'sizes 0.rf64': Kind(rf64_of_a_recorder_without_power, exact=True),
    'cut.wav': Kind(lambda: cut(write('WAV')), exact=True, whole=False),
    'cut.rf64': Kind(lambda: cut(write('RF64')), exact=True, whole=False),
    'cut.aiff': Kind(lambda: cut(write('AIFF')), exact=True, whole=False),
    'cut.flac': Kind(lambda: cut(write('FLAC')), exact=True, whole=False),
    'cut, unknown length.flac': Kind(lambda: cut(flac_of_unknown_length()), exact=True,
                                     whole=False),
    'damaged.flac': Kind(damaged_flac, exact=True, whole=False),
    'cut.ogg': Kind(lambda: cut(write('OGG', 'OPUS')), whole=False),
    'cut.mp3': Kind(lambda: cut(encode('libmp3lame', 'mp3')), whole=False),
    # Nothing in this file tells that it was cut off.
    'cut, no Xing.mp3': Kind(lambda: cut(encode('libmp3lame', 'mp3', write_xing='0'))),
    'cut.aac': Kind(lambda: cut(encode('aac', 'adts')), whole=False),
    'cut.m4a': Kind(lambda: cut(encode('aac', 'ipod', movflags='faststart')), whole=False),
    'cut.webm': Kind(lambda: cut(encode('libopus', 'webm', rate=48000)), whole=False),
    'cut.mkv': Kind(lambda: cut(encode('flac', 'matroska')), exact=True, whole=False),
    'cut.tta': Kind(lambda: cut(encode('tta', 'tta')), whole=False),
    'cut.wma': Kind(lambda: cut(encode('wmav2', 'asf', bit_rate=128000)), whole=False),
}


def length_bounds(name):
    """Return the least and the most seconds of a kind of file, without the delay of its codec."""
    broken = name.startswith(('cut', 'damaged'))
    return (SECONDS * (CUT - 0.25), SECONDS * (CUT + 0.05)) if broken else (SECONDS, SECONDS)


def make(name, folder):
    """Write a file of a kind; return its path, or None if this PyAV has no encoder for it."""
    from av.codec.codec import UnknownCodecError
    path = Path(folder) / f'a {name}'
    try:
        path.write_bytes(KINDS[name].make())
    except UnknownCodecError:
        return None
    return path


if __name__ == '__main__':  # python formats.py FOLDER writes one of each kind there
    import sys
    os.makedirs(sys.argv[1], exist_ok=True)
    for kind in KINDS:
        make(kind, sys.argv[1])
