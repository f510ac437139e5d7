#!/usr/bin/env bash
# Train a MAC for tiny: recipes/mac/tiny.sh FOLDER. FOLDER has the files of recipes/gist/tiny_samples.py, and k10, the
# gist of recipes/gist/tiny.sh. An interrupted run continues if the command is repeated.
set -euo pipefail
folder=$1
common=(--model tiny --held-out "$folder/held_out.jsonl" --tokens 10 --window 256 --rank 32 --heads 8 --on-documents --groups 32
    --questions 2 --every 100)
memograft train mac "${common[@]}" --data "$folder/short.jsonl" --out "$folder/mac-short" --start "$folder/k10" \
    --imitate 1 --alone 0.5 --learning-rate 2e-3 --steps 1500 --stop-at 800
memograft train mac "${common[@]}" --data "$folder/single.jsonl" --out "$folder/mac-single" --start "$folder/mac-short" \
    --point 0.5 --alone 0.4 --learning-rate 1.5e-3 --steps 1400 --stop-at 700 --seed 1
memograft train mac "${common[@]}" --data "$folder/single.jsonl" --out "$folder/mac" --start "$folder/mac-single" \
    --point 0.5 --alone 0.2 --shown 0.25 --others 96 --learning-rate 1e-3 --steps 1200 --seed 2
