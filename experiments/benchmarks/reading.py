"""Tiles of a slide that each reader reads, by turns."""

import collections
import os
import pathlib
import statistics
import time

from data import slides, tiling
from experiments.evaluation.tables import Row, Table


def table(path: pathlib.Path, repeats: int) -> Table:
  """Returns tiles per second of every reader, as `extract` reads them.

  Args:
    path: of a slide.
    repeats: timings of each reader, of which medians.

  Raises:
    SlideError: if a reader does not read the slide.
  """
  cores, rates = len(os.sched_getaffinity(0)), collections.defaultdict(list)
  for _ in range(repeats):
    for reader in slides.READERS:
      with slides.Slide(path, reader=reader) as slide:
        grid = tiling.tile_grid(slide, mpp=slide.mpp, min_tissue=0)
        start = time.perf_counter()
        for _ in tiling.read_tiles(slide, grid, count=32, threads=cores):
          pass
        seconds = time.perf_counter() - start
        rates[reader].append(len(grid.coords) / seconds)
  rates = {reader: statistics.median(of) for reader, of in rates.items()}
  return Table(
    name='reading',
    title=f'{path.name}: tiles per second of {cores} threads',
    labels=('reader',),
    columns={'tiles/s': '.0f', 'times OpenSlide': '.2f'},
    rows=[
      Row([reader], {'': [rate, rate / rates['openslide']]})
      for reader, rate in rates.items()
    ],
  )
