#!/usr/bin/env bash
# Train a gist for tiny: recipes/gist/tiny.sh FOLDER TOKENS [STEPS]. FOLDER has the files of tiny_samples.py.
# An interrupted run continues if the command is repeated.
set -euo pipefail
folder=$1 tokens=$2 steps=${3:-8000}
common=(--model tiny --held-out "$folder/held_out.jsonl" --tokens "$tokens" --window 256 --rank 32 --on-documents)
memograft train gist "${common[@]}" --data "$folder/short.jsonl" --out "$folder/k$tokens-short" \
    --learning-rate 2e-3 --groups 32 --accumulate 4 --documents 1 --ask 0.3 --steps 2000 --stop-at 500
memograft train gist "${common[@]}" --data "$folder/pages.jsonl" --out "$folder/k$tokens" --start "$folder/k$tokens-short" \
    --learning-rate 2e-3 --groups 16 --accumulate 4 --documents 3 --ask 0.2 --steps "$steps"
