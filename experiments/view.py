"""Shows slides with what a run's models see in them, in a browser.

  python -m experiments.view --run=results/kmil_origin_s2023

Prints the address of a page that only this machine can open; on a remote
machine, forward its port: ssh -L 8123:127.0.0.1:8123 <machine>. Ends with
Ctrl-C.
"""

import pathlib
import urllib.parse

from absl import app, flags

from data import slides
from experiments import start
from experiments.slide_maps import run_folder, tile_scores
from experiments.viewer import catalogue, server

_RUN = flags.DEFINE_string(
  'run', None, 'Results folder of a run, or of experiments.predict.'
)
_SLIDE = flags.DEFINE_string('slide', None, 'Slide id to open first.')
_FOLD = flags.DEFINE_integer(
  'fold', None, 'The only fold to show; by default the mean of all.', 0
)
_SLIDES_DIR = flags.DEFINE_string(
  'slides_dir', None, 'Folder of slide files; by default that of the run.'
)
_PORT = flags.DEFINE_integer(
  'port', 8123, 'To listen on; 0 takes any free one.', 0, 65535
)
_TILE_SIZE = flags.DEFINE_float(
  'tile_size',
  None,
  'Side of a tile in level-0 pixels, if the features do not say it.',
  1,
)
_DEFAULT_MPP = flags.DEFINE_float(
  'default_mpp', None, 'um/px of level 0 of slides that do not say it.', 1e-3
)
flags.mark_flag_as_required('run')
flags.declare_key_flag('cache_dir')


def _run() -> None:
  run = pathlib.Path(_RUN.value)
  files = run_folder.slide_files(run, _SLIDES_DIR.value, start.CACHE_DIR.value)
  found = tile_scores.find(run, _FOLD.value)
  shown = catalogue.Catalogue(
    files,
    found,
    run_folder.labels(run),
    tile_size=_TILE_SIZE.value,
    default_mpp=_DEFAULT_MPP.value,
  )
  slide = _SLIDE.value or shown.ids[0]
  if slide not in shown.ids:
    raise tile_scores.MapError(
      f'--slide={slide}: not among the {len(shown.ids)} slides of {run} that'
      f' have a file: {", ".join(shown.ids[:5])} ...'
    )
  try:
    running = server.Server(shown, _PORT.value)
  except OSError as e:
    raise OSError(f'--port={_PORT.value}: {e}; try --port=0') from e
  with running:
    page = running.url + '#' + urllib.parse.quote(slide, safe='')
    print(f'open {page}\nend with Ctrl-C', flush=True)
    try:
      running.serve_forever()
    except KeyboardInterrupt:
      print()


main = start.script(_run, (tile_scores.MapError, slides.SlideError))


if __name__ == '__main__':
  app.run(main)
