"""What a training process does without."""

import subprocess
import sys

PROGRAM = """
import sys
import torch
from m2i2.backends.choice import choose
from m2i2.training.optimizer import build

weight = torch.nn.Parameter(torch.ones(4, 4))
twin = torch.nn.Parameter(torch.ones(4, 4))
options = dict(lr=0.1, betas=(0.9, 0.98), eps=1e-8)
ours = build([{"params": [weight], "weight_decay": 0.01}], choose(torch.device("cpu")), **options)
for _ in range(3):
    (weight.sum() ** 2).backward()
    ours.step()
    weight.grad = None
assert "torch._dynamo" not in sys.modules, "the optimizer imports PyTorch's compiler"
theirs = torch.optim.AdamW([{"params": [twin], "weight_decay": 0.01}], fused=True, **options)
for _ in range(3):
    (twin.sum() ** 2).backward()
    theirs.step()
    twin.grad = None
assert torch.equal(weight, twin)
"""


def test_an_optimizer_steps_without_the_compiler_and_as_pytorchs_does() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
