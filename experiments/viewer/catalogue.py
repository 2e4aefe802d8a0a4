"""The slides of a run that can be looked at; some of them are kept open."""

from collections import OrderedDict
from collections.abc import Mapping
import pathlib
import threading

from experiments.slide_maps.tile_scores import MapError
from experiments.viewer.slide_view import SlideView

_OPEN = 4  # Slides open at a time.


class Catalogue:
  """Slides by their id; threads may share it.

  Attributes:
    ids: slides with both a file and scores, by name.
    labels: their true classes, where known.
  """

  def __init__(
    self,
    files: Mapping[str, pathlib.Path],
    scores: Mapping[str, Mapping[int, pathlib.Path]],
    labels: Mapping[str, str],
    *,
    tile_size: float | None = None,
    default_mpp: float | None = None,
  ):
    """Lists the slides.

    Args:
      files: of slides, by id.
      scores: files of tile scores by slide and fold.
      labels: true classes by slide.
      tile_size, default_mpp: see `SlideView`.

    Raises:
      MapError: if no slide has both.
    """
    self.ids = tuple(slide for slide in scores if slide in files)
    if not self.ids:
      raise MapError(
        f'none of {len(scores)} slides with scores has a file among'
        f' {len(files)} slides: pass --slides_dir'
      )
    self.labels = labels
    self._files, self._scores = files, scores
    self._options = {'tile_size': tile_size, 'default_mpp': default_mpp}
    self._open: OrderedDict[str, SlideView] = OrderedDict()
    self._lock = threading.Lock()

  def view(self, slide: str) -> SlideView | None:
    """Returns an open slide, None if there is none of that id.

    A slide that makes way for others is closed when nobody reads it any more.

    Raises:
      data.slides.SlideError, MapError: if it cannot be opened.
    """
    if slide not in self.ids:
      return None
    with self._lock:
      view = self._open.pop(slide, None)
      if view is None:
        view = SlideView(
          self._files[slide], self._scores[slide], **self._options
        )
      self._open[slide] = view  # The latest last.
      if len(self._open) > _OPEN:
        self._open.popitem(last=False)
    return view

  def drop(self, slide: str) -> None:
    """Forgets an open slide: OpenSlide's handles are dead after an error."""
    with self._lock:
      self._open.pop(slide, None)
