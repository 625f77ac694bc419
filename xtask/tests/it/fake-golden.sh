#!/bin/sh
# Stands in for both sides of `cargo xtask golden` in the tests: for the example `golden_full`, called with `compare` or
# `export`, and for a Python, called with a script.
#   FAKE_GOLDEN_LOG      a line is appended to this file for every call, the folders left out
#   FAKE_GOLDEN_LACKS    the library that this Python does not have
#   FAKE_GOLDEN_ERROR    the error of all gradients
#   FAKE_GOLDEN_FAIL     the case that Python cannot make
#   FAKE_GOLDEN_SLEEP    seconds that our side takes
set -eu
log() { [ -z "${FAKE_GOLDEN_LOG:-}" ] || echo "$*" >> "$FAKE_GOLDEN_LOG"; }
script=${1##*/}
case "$script ${2:-}" in
    "full.py --versions")
        line='{"python": "3.99.0"'
        for library in torch torchvision timm transformers numpy safetensors; do
            version='"9.9"'
            [ "${FAKE_GOLDEN_LACKS:-}" != "$library" ] || version=null
            line="$line, \"$library\": $version"
        done
        echo "$line}" ;;
    "full.py --list") printf 'resnet18-image\nresnet50-image\nbert-base\n' ;;
    "full.py "*)
        log "python $2 $3"
        [ "${FAKE_GOLDEN_FAIL:-}" != "$2" ] || exit 3
        echo "$2 $3" > "$4/case" ;;
    "compare "*)
        read -r case dtype < "$2/case"
        log "ours $case $dtype"
        sleep "${FAKE_GOLDEN_SLEEP:-0}"
        own=null
        [ "$dtype" = f64 ] || own='{"outputs": 1e-7, "gradients": 1e-6}'
        echo "{\"case\": \"$case\", \"dtype\": \"$dtype\", \"loaded\": 5, \"parameters\": 2500000," \
            "\"outputs\": {\"tensors\": 2, \"error\": 1e-12, \"name\": \"eval\"}," \
            "\"gradients\": {\"tensors\": 6, \"error\": ${FAKE_GOLDEN_ERROR:-1e-11}, \"name\": \"train w\"}," \
            "\"statistics\": {\"tensors\": 0, \"error\": 0.0, \"name\": \"\"}, \"own\": $own, \"seconds\": 1.5}" ;;
    "export "*)
        log "ours export"
        : > "$2/exported" ;;
    "export_check.py "*)
        log "python export_check"
        [ -f "$2/exported" ]
        echo 'Loading weights: 100%'
        echo '{"case": "resnet18", "loaded": 100, "error": 1e-6}' ;;
    *) exit 9 ;;
esac
