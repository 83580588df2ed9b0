#!/usr/bin/env bash
# The main job end to end on built-in data: shards -> ZeRO-2 pretraining (on two ranks; one GPU alone is one rank) -> VQA finetuning -> evaluation.
# Everything is written below runs/demo (or the folder given); started again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}
# a port of the demo's own, so that it runs beside other training on the machine
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
ranks=$(python -c 'import torch; print(1 if torch.cuda.device_count() == 1 else 2)')
set -x
python tools/make_shards.py captions phantoms --output "$out/shards/captions" --count 2000 --side 128
python tools/make_shards.py vqa phantoms --output "$out/shards/vqa" --count 1000 --side 128
deepspeed --master_port "$port" --num_gpus "$ranks" launchers/pretrain.py --deepspeed_config ds_configs/zero2.json --preset tiny \
  --shards "$out/shards/captions" --output "$out/pretrain" training.epochs=8
deepspeed --master_port "$port" --num_gpus "$ranks" launchers/finetune.py --deepspeed_config ds_configs/zero2.json --preset tiny \
  --checkpoint "$out/pretrain" --shards "$out/shards/vqa" --output "$out/finetune" training.epochs=4 answering.distillation=0
python launchers/evaluate.py --checkpoint "$out/finetune" --shards "$out/shards/vqa"
python tools/report.py "$out/pretrain" "$out/finetune" --output "$out/report.html"
