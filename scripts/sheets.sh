#!/bin/sh
# Draws docs/sheets/NAME.png, a contact sheet of every package of models/, with the command line that ships: the same
# bytes each time on the same kind of machine.
set -eu
cd "$(dirname "$0")/.."
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
rm -rf out/small
mkdir -p docs/sheets out/small
digits=0,1,2,3,4,5,6,7,8,9
alphabet=$(seq -s , 0 25)

# sheet COMMAND NAME ARGUMENTS..: what the command makes with that package
sheet() {
    command=$1
    name=$2
    shift 2
    "$pixeld" "$command" --models models --model "$name" --seed 1 --out "docs/sheets/$name.png" "$@"
}

"$pixeld" sample --models models --model digits_multi_scale_low --class $digits --seed 1 --out-dir out/small
for package in models/digits*; do
    name=${package#models/}
    case $name in
    digits_upscale) sheet upscale "$name" --count 7 out/small/*.png ;;
    *) sheet sample "$name" --class $digits --count 8 ;;
    esac
done
sheet sample letters --class "$alphabet,$alphabet"
sheet upscale letters_upscale --count 4 models/letters_upscale/examples/*.png
