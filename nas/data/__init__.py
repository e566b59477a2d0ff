"""Data sets: finds or downloads, reads, checks and splits them.

``load`` gives a `Data`; ``nas.data.augment`` (the only module here that needs torch) changes its batches.
"""

from __future__ import annotations

from nas.data.images import Data, Images
from nas.data.loading import load, load_for_truth
from nas.data.sets import known
from nas.data.split import shrunk

__all__ = ["Data", "Images", "known", "load", "load_for_truth", "shrunk"]
