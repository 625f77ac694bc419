#!/bin/sh
# Stands in for either side of `cargo xtask bench peer` in the tests: for the example `peer_step`, and, when it is called
# with `-c SCRIPT …`, for a Python that has torch.
#   FAKE_SIDE_LOG      a line is appended to this file for every turn
#   FAKE_SIDE_SLEEP    the number of the turn, counted per side, that takes a minute
#   FAKE_SIDE_FAIL     the side that ends at its first turn
#   FAKE_SIDE_LACKS    the library that this Python does not have
set -eu
who=ours
if [ "$1" = -c ]; then
    who=torch
    case $2 in
        *"; import torch; "*) echo "torch 9.9"; exit ;;
        *"; import ${FAKE_SIDE_LACKS:-nothing}") exit 1 ;;
        *"; import transformers" | *"; import torchvision" | *"; import librosa" | *"; import soundfile") exit ;;
    esac
    shift 2
fi
log() { [ -z "${FAKE_SIDE_LOG:-}" ] || echo "$who $*" >> "$FAKE_SIDE_LOG"; }
log "$* threads $RAYON_NUM_THREADS $OMP_NUM_THREADS ${GLIBC_TUNABLES:-none}"
echo "{\"ready\": \"$who\", \"mib\": 50.0}"
turn=0
while read -r word count; do
    log "$word ${count:-}"
    [ "$word" = step ] || break
    turn=$((turn + 1))
    [ "${FAKE_SIDE_FAIL:-}" != "$who" ] || exit 3
    [ "${FAKE_SIDE_SLEEP:-}" != "$turn" ] || exec sleep 60
    times=
    for i in $(seq "$count"); do times="$times${times:+, }$((i * turn)).5"; done
    echo "{\"ms\": [$times], \"loss\": 1.25}"
done
echo '{"mib": 100.0}'
