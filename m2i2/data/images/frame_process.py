"""The process that decodes compressed DICOM frames, started by `m2i2.data.images.frames`. It imports nothing of m2i2.

Its standard input brings requests: two lengths, options as JSON, the frame. Its standard output answers each with a dtype, a
shape and the pixels, or with nothing where the frame cannot be decoded. Codecs in C++ may end it; nobody but it is hurt.
"""

import json
import resource
import signal
import struct
import sys
import time
import warnings

MEMORY = 4 << 30
"""Bytes of address space. The largest frame that is accepted takes less than one of these gigabytes."""
SECONDS = 30
"""Of a processor, for a frame; the largest takes about ten."""
REQUEST, ANSWER = struct.Struct("<IQ"), struct.Struct("<8s4I")
"""Lengths of options and frame; dtype, number of dimensions (0: cannot be decoded) and the shape."""


def main() -> None:
    """Answer requests until there are no more."""
    sys.path[:] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for name in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(name, (0, 0))
    warnings.simplefilter("ignore")
    import logging

    import numpy as np
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    logging.disable()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        described, size = REQUEST.unpack(head)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
        options, frame = json.loads(source.read(described)), source.read(size)
        try:
            decoder = get_decoder(options.pop("syntax"))
            options["pixel_keyword"] = "PixelData"
            pixels, _ = decoder.as_array(encapsulate([frame]), index=0, **options)
            pixels = np.ascontiguousarray(pixels)
            shape = [pixels.ndim, *pixels.shape, 1, 1][:4]
            target.write(ANSWER.pack(pixels.dtype.str.encode(), *shape))
            target.write(pixels.data.cast("B"))
        except Exception:  # pydicom and its decoders raise almost anything
            target.write(ANSWER.pack(b"", 0, 0, 0, 0))
        target.flush()


if __name__ == "__main__":
    main()
