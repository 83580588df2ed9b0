"""One rank's share of contrast and hard negatives, for global batches of any size: time and memory must grow with what is gathered.

The other ranks' features are made up; nothing of size (global batch)^2 may be needed.
"""

import json
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.functional import normalize

from m2i2.errors import M2I2Error
from m2i2.objectives.itc import itc_loss
from m2i2.performance.measuring import peak_memory_mb
from m2i2.tasks.negatives import GlobalBatch
from m2i2.tasks.noise import counter_start
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.task import Key
from m2i2.terminal import say

ROWS, WIDTH, QUEUE = 16, 256, 65536
"""Pairs of the rank, width of the features, pairs of the queue."""


def growth_of_batch(sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Milliseconds and megabytes of a rank's contrast and draws by the size of the global batch, each in a process of its own."""
    found = {}
    for size in sizes:
        command = [sys.executable, "-m", "m2i2.performance.global_batch", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise M2I2Error(f"Measuring a global batch of {size} failed: {done.stderr.strip()[-500:]}")
        found[str(size)] = json.loads(done.stdout)
    return found


def _measure(size: int, rounds: int = 5) -> dict[str, float]:
    """Median times of the parts, and memory beyond the gathered tensors themselves."""
    torch.manual_seed(0)
    features = [normalize(torch.randn(size, WIDTH), dim=1) for _ in range(2)]
    ids = [torch.randint(1 << 60, (size,)) for _ in range(2)]
    everyone = GlobalBatch.of((*features, *ids), FeatureQueue(QUEUE, WIDTH), local=False)  # no rank but this one: nothing is sent
    global_batch = everyone.part(0, ROWS)
    student = [normalize(torch.randn(ROWS, WIDTH), dim=1).requires_grad_() for _ in range(2)]
    temperature = torch.full((1,), 0.07, requires_grad=True)
    contrasts, draws, before = [], [], peak_memory_mb()
    for step in range(rounds + 1):
        start = time.perf_counter()
        excluded = global_batch.excluded()
        keys = (global_batch.image, global_batch.queue.image), (global_batch.text, global_batch.queue.text)
        contrast = itc_loss(student[0], student[1], *keys, global_batch.own(), temperature, 0.4, excluded)
        contrast.loss.backward()
        middle = time.perf_counter()
        similarities = contrast.text_to_image[:, :size], contrast.image_to_text[:, :size]
        starts = torch.tensor([counter_start(Key(0, step, 0), stream) for stream in range(2)])
        global_batch.draw(*similarities, excluded[:, :size], starts)
        contrasts.append(1000 * (middle - start))
        draws.append(1000 * (time.perf_counter() - middle))
    return {
        "contrast_ms": statistics.median(contrasts[1:]),
        "draws_ms": statistics.median(draws[1:]),
        "memory_mb": peak_memory_mb() - before,
    }


if __name__ == "__main__":
    say(json.dumps(_measure(int(sys.argv[1]))))
