"""The command line that pretraining and finetuning share: preset, file, overrides, and a help that lists every setting."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from m2i2.config import CacheConfig, FinetuningConfig, PretrainingConfig
from m2i2.errors import M2I2Error
from m2i2.options import explain, leaves, override, read_settings, suggested
from m2i2.presets import PRESETS
from m2i2.terminal import say

_SETTING = re.compile(r"[a-z_]+\.[a-z_]+=")

C = TypeVar("C", PretrainingConfig, FinetuningConfig)


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command without settings that reads shards behind a URL."""
    parser.add_argument(
        "--cache-folder", default="", metavar="DIR", help="where shards behind a URL are kept (~/.cache/m2i2/shards)"
    )
    parser.add_argument("--cache-gb", type=float, default=CacheConfig.cache_gb, metavar="N", help="its largest size (%(default)s)")
    add_store_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that asks a model about shards: how the model is read and computes, and those of the cache."""
    add = parser.add_argument
    add("--tokenizer", default="", metavar="NAME", help="tokenizer of an official .pth: a name on the hub or a folder")
    add_cache_options(parser)
    add("--precision", default="auto", choices=["auto", "bfloat16", "float16", "float32"], help="as in training (%(default)s)")


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Which servers may be asked for shards behind a URL, and with which credentials."""
    parser.add_argument("--cache-hosts", action="append", default=[], metavar="HOST", help="as data.cache_hosts; may be repeated")
    parser.add_argument("--cache-metadata", action="store_true", help="as data.cache_metadata=true")


def cache_of(arguments: argparse.Namespace) -> CacheConfig:
    """What `add_cache_options` was given."""
    names = ("cache_folder", "cache_gb", "cache_metadata")
    return CacheConfig(**{name: getattr(arguments, name) for name in names}, cache_hosts=tuple(arguments.cache_hosts))


class SettingsParser(Generic[C]):
    """argparse for a launcher, with presets and dotted overrides (``training.epochs=5``) beside its options."""

    def __init__(self, kind: type[C], stage: str, description: str, examples: str) -> None:
        self.kind: type[C] = kind
        self.stage = stage
        self.parser = argparse.ArgumentParser(
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        add = self.parser.add_argument
        add("settings", nargs="*", metavar="section.key=value", help="settings to change; see the list below")
        add("--help", "-h", action="store_true", help="this text, with every setting and its value in the chosen preset")
        add("--preset", choices=list(PRESETS), help="settings to start from (default: paper; tiny without --shards)")
        add("--config", type=Path, metavar="FILE", help="settings from a run's settings.json instead of a preset")
        add("--shards", nargs="+", metavar="DIR", help="folders made by tools/make_shards.py, or their URLs (s3://, https://)")
        add(
            "--output",
            type=Path,
            metavar="DIR",
            help=f"the run's folder (default: runs/{stage}-PRESET); the same command resumes",
        )
        add("--deepspeed_config", type=Path, metavar="FILE", help="DeepSpeed configuration (default: ZeRO-2)")
        add(
            "--allow-fewer-ranks",
            action="store_true",
            help="resume on the largest number of the ranks that divides the run's batch, with accumulation for the others",
        )
        add(
            "--preflight",
            action="store_true",
            help="measure every rank before training (some seconds); a node that computes wrongly is named and ends the start",
        )
        add("--local_rank", type=int, help=argparse.SUPPRESS)

    def parse(self, argv: Sequence[str] | None, fallback_preset: str) -> tuple[C, argparse.Namespace]:
        """Settings and options; prints the help and exits where it was asked for. ``fallback_preset`` serves without --shards."""
        arguments, unknown = self.parser.parse_known_intermixed_args(argv)
        if unknown:
            name = unknown[0].lstrip("-").partition("=")[0]
            near = suggested(name, [key for key, *_ in leaves(self.kind)])
            hint = f"settings stand without dashes: did you mean {'=... or '.join(near)}=...? " if near else ""
            raise M2I2Error(f"Unknown option {unknown[0]!r}; {hint}--help lists options and settings.")
        if arguments.preset and arguments.config:
            raise M2I2Error("--preset and --config both name settings to start from; give one of them.")
        # "--shards A B training.epochs=5": the settings behind a list of folders are settings
        words = arguments.shards or []
        arguments.settings += [word for word in words if _SETTING.match(word)]
        arguments.shards = [word for word in words if not _SETTING.match(word)]
        name = arguments.preset or ("paper" if arguments.shards else fallback_preset)
        if arguments.config:
            settings: Any = read_settings(self.kind, arguments.config)
        else:
            settings = PRESETS[name]()[0 if self.kind is PretrainingConfig else 1]
        settings = override(settings, arguments.settings)
        if arguments.help:
            say(self.parser.format_help())
            say(f"settings, with their values in the preset {settings.preset!r}:\n{explain(settings)}")
            raise SystemExit(0)
        if arguments.shards:
            settings = replace(settings, data=replace(settings.data, shards=tuple(arguments.shards)))
        if arguments.output is None:
            arguments.output = Path("runs") / f"{self.stage}-{settings.preset}"
        return settings, arguments
