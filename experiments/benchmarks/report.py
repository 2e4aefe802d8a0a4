"""A measured benchmark as text and as a table."""

_HEADS = (
  'part', 'model', 'N', 'runs', 'torch ms', 'kmil_jax ms', 'ratio',
  "torch's form", 'compile s: torch', 'kmil_jax', 'of ceiling', 'bound',
)  # fmt: skip


def markdown(measured: dict) -> str:
  """Returns the settings, the table, and what was not measured."""
  rows = [_HEADS, ('---',) * len(_HEADS), *map(_cells, measured['rows'])]
  table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
  return f'{_preface(measured)}\n\n{table}\n{_rest(measured)}'


def text(measured: dict) -> str:
  """As `markdown`, in aligned columns."""
  rows = [_HEADS, *map(_cells, measured['rows'])]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  table = '\n'.join(
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  )
  return f'{_preface(measured)}\n\n{table}\n{_rest(measured)}'


def _cells(row: dict) -> tuple[str, ...]:
  return (
    row['part'],
    row['model'],
    f'{row["instances"]:,}',
    str(row['runs']),
    f'{row["torch_s"] * 1e3:.3g}',
    f'{row["jax_s"] * 1e3:.3g}',
    f'{row["ratio"]:.2f}',
    row['torch_form'],
    f'{row["torch_compile_s"]:.1f}',
    f'{row["jax_compile_s"]:.1f}',
    f'{row["fraction"]:.0%}',
    row['bound'],
  )


def _preface(measured: dict) -> str:
  top, settings = measured['ceilings'], measured['settings']
  lines = [
    f'{measured["date"]}; {_pairs(measured["device"])}; '
    f'{_pairs(measured["versions"])}.',
    f'{settings["precision"]} (float32 products: jax '
    f'{settings["jax_matmul_precision"]}, torch '
    f'{settings["torch_matmul_precision"]}); medians of up to '
    f'{settings["repeats"]} repeats by turns; torch with '
    f'{settings["torch_threads"]} threads, load '
    f'{settings["load_average"]:.1f}.',
    f'Large products: torch {top["torch_flops"] / 1e9:,.0f}, jax '
    f'{top["jax_flops"] / 1e9:,.0f} GFLOP/s; copies: torch '
    f'{top["torch_bytes"] / 1e9:,.1f}, jax {top["jax_bytes"] / 1e9:,.1f} GB/s.',
    'Ratio: torch over kmil_jax, above 1 kmil_jax is faster. Of ceiling:'
    " kmil_jax's share of what the better side's products or copies allow.",
  ]
  return '\n'.join(lines)


def _rest(measured: dict) -> str:
  rates = [
    f'Trunk: {row["instances"] / row["torch_s"]:,.1f} tiles/s in torch, '
    f'{row["instances"] / row["jax_s"]:,.1f} in kmil_jax.'
    for row in measured['rows']
    if row['part'] == 'trunk'
  ]
  missing = [
    f'Not measured: {entry["part"]} {entry["model"]}, N = '
    f'{entry["instances"]:,}, runs = {entry["runs"]}: {entry["reason"]}.'
    for entry in measured['not_measured']
  ]
  return '\n'.join(['', *rates, *missing]) if rates or missing else ''


def _pairs(values: dict) -> str:
  return ', '.join(f'{name} {value}' for name, value in values.items())
