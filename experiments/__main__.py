"""Lists the scripts in the order in which they are used.

python -m experiments                 # or kmil_jax
kmil_jax extract --slides_dir=slides  # is python -m experiments.extract
"""

import ast
from collections.abc import Sequence
import pathlib
import runpy
import sys

SCRIPTS = {
  'Your slides': ('extract', 'pack'),
  'Bag models': ('kmil', 'mean_pooling', 'ablations', 'paper', 'compare'),
  'A trained run': ('report', 'view', 'draw_maps', 'predict', 'export'),
  'Other systems': (
    'two_step',
    'hard_negatives',
    'ct_nodes',
    'few_shot',
    'froc',
  ),
  'Costs': ('cost', 'benchmark', 'compile_report', 'gpu_report'),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Lists the scripts, or runs the one that is named."""
  given = (sys.argv if argv is None else argv)[1:]
  names = [name for some in SCRIPTS.values() for name in some]
  if given and given[0] in names:
    module = f'experiments.{given[0]}'
    sys.argv = [module, *given[1:]]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    return
  if given and given[0] not in ('--help', '-h', 'help'):
    sys.exit(f'error: no script {given[0]!r}. There are {", ".join(names)}.')
  for title, some in SCRIPTS.items():
    print(f'{title}:')
    for name in some:
      print(f'  {name:15} {_about(name)}')
  print('python -m experiments.NAME --help lists the flags of a script.')


def _about(name: str) -> str:
  """Returns the first line of a script's docstring, without importing it."""
  text = pathlib.Path(__file__).with_name(f'{name}.py').read_text('utf-8')
  return (ast.get_docstring(ast.parse(text)) or '').splitlines()[0]


if __name__ == '__main__':
  main()
