#!/usr/bin/env bash
# DeiT's own augmentation, timm's rand-m9-mstd0.5-inc1, ends a training run under Pillow 13: posterizing to 0 bits, which
# timm asks for at magnitude 10, where the noise is cut off, gave a black image up to Pillow 12 and is a ValueError now.
# It comes once in some 650 images, so within the first seconds of an epoch of ImageNet, and from a loader's worker. Who
# trains with timm needs Pillow 12, or a policy whose noise is cut off earlier (mmax).
# Seen with timm 1.0.31, of which the one file that needs no torch is run, 20,000 images:
#   Pillow 12.0.0: 0 errors
#   Pillow 13.0.0: 31 errors, ValueError: bits must be between or equal to 1 and 8
# Exits 0 while this is so. Needs python3.11 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 12.0.0 13.0.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q --no-deps "pillow==$version" numpy==2.3.4 timm==1.0.31
  "$folder/$version/bin/python" - <<'PYTHON'
import importlib.util
import random
import sysconfig

import numpy as np
import PIL
from PIL import Image

path = sysconfig.get_paths()["purelib"] + "/timm/data/auto_augment.py"
spec = importlib.util.spec_from_file_location("auto_augment", path)
auto_augment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(auto_augment)
random.seed(0)
np.random.seed(0)
augment = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (124, 116, 104)})
image, errors, last = Image.new("RGB", (32, 32), (10, 200, 90)), 0, ""
for _ in range(20_000):
    try:
        augment(image)
    except ValueError as error:
        errors, last = errors + 1, f", ValueError: {error}"
print(f"Pillow {PIL.__version__}: {errors} errors{last}")
PYTHON
done >"$folder/seen"
cat "$folder/seen"
printf '%s\n' "Pillow 12.0.0: 0 errors" "Pillow 13.0.0: 31 errors, ValueError: bits must be between or equal to 1 and 8" |
  cmp -s - "$folder/seen"
