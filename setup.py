"""Installation of M2I2. Versions that were tested together stand in constraints.txt: pip install -c constraints.txt -e .[dev]"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "m2i2" / "__init__.py").read_text())
assert VERSION
# python-gdcm decodes compressed DICOM (BSD licence; pylibjpeg-libjpeg would bring the GPL)
DICOM = ["pydicom>=3", "python-gdcm>=3.0"]
APP = [*DICOM, "gradio>=6"]
SLURM = ["submitit>=1.5", "pyyaml"]
REMOTE = ["fsspec>=2026.9", "aiohttp>=3.14", "s3fs>=2026.9"]
PARQUET = ["pyarrow>=15"]
DOCS = ["mkdocs>=1.6"]
TESTS = [
    *(*SLURM, *REMOTE, *PARQUET, *DICOM, *DOCS, "matplotlib", "tensorboard", "datasets>=5"),
    *("pytest", "pytest-xdist", "hypothesis", "psutil", "onnx", "moto[server]>=5.2"),
]
"""What tests/unit, tests/parity and tests/distributed need."""
COMMANDS = [
    *("pretrain", "finetune", "evaluate", "slurm", "make_shards", "make_tokenizer", "fetch_minilm", "fetch_vit"),
    *("doctor", "report", "plot_losses", "gradcam", "convert", "app", "compare", "audit_leakage", "plan", "supply_chain"),
]
"""Modules of m2i2.cli that need no checkout."""

setup(
    name="m2i2",
    version=VERSION[1],
    description="Self-supervised vision-language pretraining and medical visual question answering, at any scale",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The M2I2 authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["medical visual question answering", "vision-language pretraining", "radiology", "DeepSpeed", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2211.13594"},
    python_requires=">=3.10",
    packages=find_packages(include=["m2i2", "m2i2.*"]),
    package_data={
        "m2i2.app": ["*.css", "*.js", "*.j2"],
        "m2i2.evaluation": ["*.json"],
        "m2i2.reporting": ["*.j2"],
        "m2i2.demo": ["model/*"],
        "m2i2": ["py.typed"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "deepspeed>=0.19.8,<0.20",
        "packaging",
        "transformers>=5",
        "timm>=1.0",
        "tokenizers>=0.23",
        "safetensors",
        "webdataset>=1.0",
        "numpy>=1.26",
        "pillow>=10",
        "rich>=13",
        "jinja2",
    ],
    extras_require={
        "slurm": SLURM,
        "remote": REMOTE,
        "parquet": PARQUET,
        "dicom": DICOM,
        "app": APP,
        "plots": ["matplotlib"],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        "fuzz": ["hypothesis", "atheris>=3; sys_platform == 'linux' and python_version >= '3.11'"],
        "tests": TESTS,
        "docs": DOCS,
        "dev": [*TESTS, *APP, "wandb", "selenium>=4", "ruff", "mypy", "import-linter", "build"],
    },
    entry_points={
        "console_scripts": [f"m2i2-{name.replace('_', '-')} = m2i2.cli.{name}:main" for name in COMMANDS],
        "lmms_eval.models": ["m2i2 = m2i2.app.lmms:MANIFEST"],
    },
)
