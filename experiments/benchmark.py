"""Times kmil_jax against torch on the same bags, in one process.

  python -m experiments.benchmark --format=markdown
  python -m experiments.benchmark --models=kmil --instances=1024 --parts=step

Synthetic bags of 1,024 features and 5 classes lie on the device; torch runs in
the fastest form that works; both sides take turns, and medians are compared.
Before anything is timed, torch's weights are given to kmil_jax and the logits
must agree.
"""

import json
import os
import sys

from absl import app, flags, logging

from experiments.benchmarks import report

_MODELS = ('kmil', 'abmil', 'dsmil', 'transmil', 'dtfd')
_PARTS = ('step', 'inference', 'trunk', 'epoch')
_MODEL_FLAG = flags.DEFINE_list('models', list(_MODELS), 'Which to time.')
_PARTS_FLAG = flags.DEFINE_list(
  'parts',
  list(_PARTS),
  'A training step; inference; the tile encoder; an epoch of ten-fold'
  ' cross-validation.',
)
_INSTANCES = flags.DEFINE_list(
  'instances', ['256', '1024', '4096', '16384'], 'Instances of a bag.'
)
_RUNS = flags.DEFINE_list('runs', ['1', '10'], 'Runs trained together.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timings of each side.', 1)
_PRECISION = flags.DEFINE_enum(
  'precision', 'float32', ['float32', 'bfloat16'], 'Of features and products.'
)
_BUDGET = flags.DEFINE_float(
  'budget_s', None, 'Seconds for everything; what they do not buy is listed.', 0
)
_COMPILE = flags.DEFINE_float(
  'compile_s',
  120.0,
  'Seconds in which a compiled form of torch must be warm; 0 leaves'
  ' torch.compile out.',
  0,
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of bags and weights.', 0)
_FORMAT = flags.DEFINE_enum(
  'format', 'text', ['text', 'markdown', 'json'], 'Of what is printed.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
  logging.set_verbosity(logging.WARNING)  # JAX names what it does not find.
  # Both sides share one device. JAX and torch read these once.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
  from experiments.benchmarks import suite

  settings = suite.Settings(
    models=_MODEL_FLAG.value,
    instances=[int(n) for n in _INSTANCES.value],
    runs=[int(r) for r in _RUNS.value],
    repeats=_REPEATS.value,
    precision=_PRECISION.value,
    parts=_PARTS_FLAG.value,
    budget_s=_BUDGET.value,
    compile_s=_COMPILE.value,
    seed=_SEED.value,
  )
  measured = suite.run(settings, lambda line: print(line, file=sys.stderr))
  if _FORMAT.value == 'json':
    print(json.dumps(measured))
  elif _FORMAT.value == 'markdown':
    print(report.markdown(measured))
  else:
    print(report.text(measured))


def _all_of(known: tuple[str, ...]):
  return lambda values: bool(values) and set(values) <= set(known)


def _are_positive(values: list[str]) -> bool:
  return bool(values) and all(v.isdecimal() and int(v) > 0 for v in values)


for _name, _known in (('models', _MODELS), ('parts', _PARTS)):
  flags.register_validator(
    _name, _all_of(_known), f'must be some of {", ".join(_known)}'
  )
for _name in ('instances', 'runs'):
  flags.register_validator(_name, _are_positive, 'must be numbers above 0')


if __name__ == '__main__':
  app.run(main)
