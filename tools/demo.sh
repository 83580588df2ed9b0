#!/usr/bin/env bash
# The main job end to end on built-in data: shards -> 2-rank ZeRO-2 pretraining -> VQA finetuning -> evaluation.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}
python tools/make_shards.py captions phantoms --output "$out/shards/captions" --count 4000 --side 128
python tools/make_shards.py vqa phantoms --output "$out/shards/vqa" --count 1500 --side 128
deepspeed --num_gpus 2 launchers/pretrain.py --deepspeed_config ds_configs/zero2.json --preset tiny \
  --shards "$out/shards/captions" --output "$out/pretrain"
deepspeed --num_gpus 2 launchers/finetune.py --deepspeed_config ds_configs/zero2.json --preset tiny \
  --checkpoint "$out/pretrain" --shards "$out/shards/vqa" --output "$out/finetune"
python launchers/evaluate.py --checkpoint "$out/finetune" --shards "$out/shards/vqa" --output "$out/evaluation"
