"""What the test files of the suite have in common."""

import os
import pathlib

import golden_comparer
import golden_runner
import golden_subset


def check(chain, folder) -> None:
  """Runs a chain and fails with the first differences from its goldens."""
  goldens = golden_subset.goldens(chain)
  shared = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  programs = pathlib.Path(shared) if shared else folder / 'programs'
  records = golden_subset.recorded(chain, folder / 'chain', programs)
  assert list(records) == list(goldens)
  wrong = []
  for command in chain.commands:
    record = records[command.name]
    found = golden_comparer.compare(
      goldens[command.name], record, command.width
    )
    lines = [str(difference) for difference in found.differences]
    lines += golden_runner.unexpected(command, record)
    wrong += [f'{chain.name}/{command.name}: {line}' for line in lines[:8]]
  assert not wrong, '\n'.join(wrong)
