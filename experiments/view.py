"""Shows slides with what a run's models see in them, in a browser.

  python -m experiments.view --run=results/kmil_origin_s2023

Prints the address of a page that only this machine can open; on a remote
machine, forward its port: ssh -L 8123:127.0.0.1:8123 <machine>. Ends with
Ctrl-C.
"""

import urllib.parse

from absl import app, flags

from data import slides
from experiments import start
from experiments.slide_maps import map_flags, run_folder, tile_scores
from experiments.viewer import catalogue, server

_SLIDE = flags.DEFINE_string('slide', None, 'Slide id to open first.')
_PORT = flags.DEFINE_integer(
  'port', 8123, 'To listen on; 0 takes any free one.', 0, 65535
)
_DEFAULT_MPP = flags.DEFINE_float(
  'default_mpp', None, 'um/px of level 0 of slides that do not say it.', 1e-3
)
flags.adopt_module_key_flags(map_flags)


def _run() -> None:
  run, files, found = map_flags.resolve()
  shown = catalogue.Catalogue(
    files,
    found,
    run_folder.labels(run),
    tile_size=map_flags.TILE_SIZE.value,
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
