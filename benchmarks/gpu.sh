#!/bin/bash
# Training steps on a GPU: throughput and memory of every task and of fine-tuning at 128³ with widths 32-512, in float32,
# in bfloat16 and compiled, with 1 to 16 volumes a step; `read` and `ask` are the shares of reading and asking.
#
#   bash benchmarks/gpu.sh          under eight minutes; writes results/bench/gpu.csv
#   bash benchmarks/gpu.sh --try    tiny networks on the CPU, to see that it runs
#
# Each line is kept once it is measured: the same command goes on where it stopped, or was stopped.
# No table is committed yet: no GPU was at hand when this was written, so nothing of it has been seen on one.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-results/bench/gpu.csv}
LIMIT=${LIMIT:-470}  # seconds in all

how=(--device cuda --sides 128)
batches=(1 4 16)
middle=4
if [ "${1:-}" = --try ]; then
  how=(--device cpu --quick --steps 1 --tasks rotation segmentation)
  batches=(1)
  middle=1
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "There is no GPU here that PyTorch can use. Try: bash benchmarks/gpu.sh --try"; exit 1
fi

step() {
  left=$((LIMIT - SECONDS))
  if [ "$left" -le 0 ]; then echo "The time is over. Give the same command again to go on."; exit 2; fi
  PYTHONPATH=$PWD timeout "$left" "$PYTHON" benchmarks/steps.py "${how[@]}" --resume --out "$OUT" "$@"
  if [ $? -eq 124 ]; then echo "The time is over. Give the same command again to go on."; exit 2; fi
}

step --batch "${batches[@]}" --precision bf16-mixed 32-true
step --batch "$middle" --precision bf16-mixed --compile
echo "All lines are in $OUT."
