#!/bin/sh
# Times all models on the GPU of this machine, in less than ten minutes:
#
#   experiments/benchmarks/gpu.sh [--install] [flags of experiments.benchmarks.gpu]
#
# It takes the Python in $PYTHON, or python3 on the path, with the JAX and torch
# that are there. Only with --install, as the first flag, does it install: a
# virtual environment .gpu_venv, which sees what is installed already.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
needs='flax optax orbax chex absl scipy sklearn'
if [ "${1:-}" = --install ]; then
  shift
  "$python" -m venv --system-site-packages .gpu_venv
  .gpu_venv/bin/pip install -q 'jax[cuda12]>=0.10,<0.13' 'flax>=0.12.7,<0.13' \
    'optax>=0.2.5,<0.3' 'orbax-checkpoint>=0.12,<0.13' 'chex>=0.1.90,<0.2' \
    'absl-py>=2.1,<3' 'scipy>=1.14,<2' 'scikit-learn>=1.5,<2'
fi
[ ! -x .gpu_venv/bin/python ] || [ -n "${PYTHON:-}" ] || python=.gpu_venv/bin/python
"$python" - $needs jax <<'END' || exit 1
import importlib.util, sys
missing = [n for n in sys.argv[1:] if importlib.util.find_spec(n) is None]
if missing or sys.version_info < (3, 11):
  sys.exit(f'error: {sys.executable} is Python {sys.version.split()[0]}; missing:'
           f' {", ".join(missing) or "Python 3.11 or newer"}. Give another one as'
           ' PYTHON=..., or --install.')
END
"$python" --version
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
  2>/dev/null || echo 'no NVIDIA driver: CPUs are timed'
# What has been measured until then is in the report.
exec timeout --signal=INT --kill-after=15 580 \
  "$python" -m experiments.benchmarks.gpu "$@"
