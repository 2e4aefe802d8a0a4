"""Packs a cohort's labels and feature files into a TFDS dataset."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data import cohort, inspection, labels as label_files, packed
from data.features import FeatureError, Header
from data.labels import Manifest

_KEYS = 2**128  # TFDS sorts by keys below this.


@dataclasses.dataclass(eq=False, kw_only=True)
class SlideBagsConfig(tfds.core.BuilderConfig):
  """Which cohort to pack; `name` is the dataset's folder.

  Attributes:
    csv_path: labels, see `data.labels.read`.
    features_dir: holds <slide_id>.h5 of every slide in the table.
    watch: returns the slides that it is given, and shows how many were taken;
      the second argument says for what.
  """

  csv_path: str
  features_dir: str
  watch: Callable[[Iterable[str], str], Iterable[str]] = lambda slides, _: (
    slides
  )


class Builder(tfds.core.GeneratorBasedBuilder):
  """One example per slide, in the order of slide ids.

  Pass a `SlideBagsConfig` to pack. A packed dataset is read from its folder and
  needs neither this class nor the files: see `data.packed`,
  `tfds.builder_from_directory`, and, if its file format is tfrecord,
  `tfds.load`.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First version.'}

  def _info(self) -> tfds.core.DatasetInfo:
    """See base class.

    Raises:
      data.features.FeatureError: naming slides whose files are missing,
        unreadable or made otherwise than the others, see `data.cohort.match`.
      data.labels.ManifestError: if the table cannot be used.
    """
    table, folder, headers = self._cohort
    slides = table.slide.tolist()
    array = functools.partial(
      tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES
    )
    width, dtype = headers[0].width, np.result_type(*(h.dtype for h in headers))
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'slide_id': tfds.features.Text(),
          'case_id': tfds.features.Text(),
          'label': tfds.features.ClassLabel(names=sorted(set(table.label))),
          'features': array(shape=(None, width), dtype=dtype),
          'coords': array(shape=(None, 2), dtype=np.int32),
          'attributes': tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(
        slide_id=slides,
        case_id=table.case.tolist(),
        length=[int(h.length) for h in headers],
        width=int(width),
        attributes=[
          json.loads(_to_json(slide, h.attributes))
          for slide, h in zip(slides, headers, strict=True)
        ],
        digest=[folder.digest(slide) for slide in slides],
      ),
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    """See base class; folds are drawn later, so there is one split."""
    del dl_manager  # Nothing is downloaded.
    return {packed.SPLIT: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    """See base class."""
    table, folder, _ = self._cohort
    dtype = self.info.features['features'].np_dtype
    slides = self.builder_config.watch(table.slide, 'packed')
    for i, slide in enumerate(slides):
      file = folder.read(slide)
      coords = np.zeros((0, 2)) if file.coords is None else file.coords
      # Above 1 GB TFDS sorts by ranges of keys, each in memory: keys that
      # spread over all of them keep the order and the memory small.
      yield (
        i * _KEYS // len(table.slide),
        {
          'slide_id': slide,
          'case_id': table.case[i],
          'label': table.label[i],
          'features': file.features.astype(dtype),
          'coords': coords.astype(np.int32),
          'attributes': _to_json(file.path, file.attributes),
        },
      )

  @functools.cached_property
  def _cohort(self) -> tuple[Manifest, packed.Folder, list[Header]]:
    config = self.builder_config
    table = label_files.read(config.csv_path)
    folder = packed.Folder(config.features_dir)
    slides = table.slide.tolist()
    reads = inspection.inspect(folder, slides)
    for _ in zip(config.watch(slides, 'read'), reads, strict=False):
      pass
    matched = cohort.match(folder, table)
    if matched.problems:
      raise FeatureError('\n'.join(matched.problems))
    return table, folder, list(matched.headers.values())


def _to_json(owner: Path | str, attributes: dict[str, Any]) -> str:
  """Returns attributes as JSON; a FeatureError names the owner of others."""
  try:
    return json.dumps(attributes)
  except TypeError as e:
    raise FeatureError(
      f'{owner}: an attribute cannot be packed ({e}). Take it out of the file.'
    ) from e
