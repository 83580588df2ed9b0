"""The readers of what a user may be handed beside data: recipes, cluster options, DeepSpeed configurations."""

import argparse
import json
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from m2i2.cluster.options import add_cluster_options, cluster_options
from m2i2.data.loading.sampling import Share
from m2i2.experiments.recipe import cells, commands, read_recipe
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, complete_config, read_deepspeed_config
from tests.conftest import ROOT
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes, mutated_json


def _recipe(folder: Path) -> Opened:
    path = folder / "recipe.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        recipe = read_recipe(path)
        for cell in cells(recipe):
            list(commands(recipe, cell))

    ours = sorted((ROOT / "docs" / "recipes").glob("*.json"), key=lambda file: file.stat().st_size)
    small = {
        **{"name": "drawn", "preset": "tiny", "pretraining_shards": ["shards/captions"], "pretraining_seeds": 2},
        **{"prepare": ["make_shards.py vqa slake {data}/slake --output shards/slake"], "start": ["start.text=weights/minilm"]},
        "datasets": {"slake": {"shards": "shards/slake", "variants": ["full", "no ITC"], "seeds": 2, "once": ["flips on"]}},
    }
    return Opened([json.dumps(small).encode(), ours[0].read_bytes()], read)  # a large one takes longer to change than to read


_CLUSTER = b"""# a lab's cluster
partition: gpu
account: radiology
time: 1-12:30:00
nodes: 2
gpus: 4
cpus: 8
memory: 256.5
exclusive: true
constraint: a100|h100
sbatch:
  - comment=m2i2
  - nice
setup: |
  module load cuda
  ulimit -n 4096
signal_delay: 600
"""
_YAML = (
    b"&a ",
    b"*a",
    b"!!python/object/apply:os.system ",
    b"<<: ",
    b"? ",
    b"- ",
    b": ",
    b"|\n",
    b"[" * 2000,
    b"{a: " * 2000,
    b"\t",
    b"%YAML 9.9\n",
    b"--- ",
)


def _cluster(folder: Path) -> Opened:
    parser = argparse.ArgumentParser()
    add_cluster_options(parser)
    path = folder / "cluster.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        cluster_options(parser.parse_args([]), path)

    return Opened([_CLUSTER, b"{partition: gpu, gpus: 1, setup: [a, b]}\n"], read)


@st.composite
def _changed_options(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Values and lines of the options changed, dropped and repeated."""
    lines = draw(st.sampled_from(seeds)).decode().splitlines()
    strange = [
        "-1",
        "1e400",
        "9" * 5000,
        "[[]]",
        "{}",
        "",
        "!!binary x",
        "0x10",
        "nan",
        "a\tb",
        '"\\U00110000"',
        "'",
        "99999999999-1",
        "~",
    ]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        name, colon, _ = lines[place].partition(":")
        match draw(st.integers(0, 3)):
            case 0:
                lines[place] = f"{name}{colon} {draw(st.one_of(st.sampled_from(strange), st.text(max_size=8)))}"
            case 1:
                lines.insert(place, draw(st.sampled_from(lines)))
            case 2 if len(lines) > 1:
                del lines[place]
            case _:
                lines[place] = " " * draw(st.integers(0, 4)) + lines[place]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _deepspeed(folder: Path) -> Opened:
    path = folder / "config.json"
    more = {
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]},
        "communication_data_type": "bf16",
        "gradient_clipping": "auto",
    }

    def read(data: bytes) -> None:
        path.write_bytes(data)
        complete_config(read_deepspeed_config(path), Share(8, 2, 0, 2), 1.0, str(path))

    return Opened([json.dumps(DEFAULT_CONFIG).encode(), json.dumps({**DEFAULT_CONFIG, **more}).encode()], read)


READERS = [
    Reader("recipe", _recipe, mutated_json),
    Reader("cluster options", _cluster, either(_changed_options, lambda seeds: mutated_bytes(seeds, _YAML))),
    Reader("DeepSpeed configuration", _deepspeed, mutated_json),
]
