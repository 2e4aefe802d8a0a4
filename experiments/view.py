"""Shows slides with what a run's models see in them, in a browser.

  python -m experiments.view --run=results/kmil_origin_s2023

Prints the address of a list of the slides, which only this machine can open; on
a remote machine, forward its port: ssh -L 8123:127.0.0.1:8123 <machine>. Ends
with Ctrl-C.
"""

import dataclasses
import urllib.parse

from experiments.maps.source import Slides
from experiments.maps.tile_scores import MapError
from experiments.run import start
from experiments.run.options import field


@dataclasses.dataclass(frozen=True)
class Page:
  """The page."""

  slide: str | None = field(
    None, 'Id of the slide to open first. By default the list of all.'
  )
  port: int = field(
    8123, 'Port to listen on; 0 takes any free one.', least=0, most=65535
  )
  slide_mpp: float | None = field(
    None,
    'Micrometres per pixel of level 0, for the scale bar of slides that do not'
    ' state it.',
    least=1e-3,
  )


def run(slides: Slides, page: Page) -> start.Next:
  """Serves the slides until Ctrl-C."""
  # It imports matplotlib, which takes half a second.
  from experiments.viewer.server import Server

  try:
    server = Server(
      slides.files(),
      slides.scores(),
      slides.tables(),
      page.port,
      tile_size=slides.tile_size,
      slide_mpp=page.slide_mpp,
      outlines_dir=slides.outlines_dir,
    )
  except OSError as e:
    raise OSError(
      f'--port={page.port}: {e}. Another viewer may be running. Try --port=0.'
    ) from e
  with server:
    if page.slide not in (None, *server.ids):
      raise MapError(
        f'--slide={page.slide}: not among the {len(server.ids)} slides that'
        f' have scores and a file: {", ".join(server.ids[:5])} ...'
      )
    place = '#' + urllib.parse.quote(page.slide, safe='') if page.slide else ''
    print(f'open {server.url}{place}\nend with Ctrl-C', flush=True)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      print()
  if not slides.folder().at('cohort.csv').exists():  # Of predictions.
    return 'draw_maps', {'geojson': True}
  trained = slides.folder().config().values.get('fold')
  fold = trained if slides.fold is None else slides.fold
  return 'predict', {'slides_dir': 'new_slides', 'fold': fold}


main = start.script(run)


if __name__ == '__main__':
  main()
