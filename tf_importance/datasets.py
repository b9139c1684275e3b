"""Which of a model's datasets the coming steps are on.

A batch (x, y, weight) does not say from which dataset it is, and Keras's step gets nothing else.
`fit` says it; in a loop of one's own all datasets of the model have to be drawn alike.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

from tf_importance import compat, marks


class Datasets:
    """The datasets that were made for one model and are still there.

    Args:
        model: an ISModel.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._drawings: weakref.WeakValueDictionary[int, marks.Drawing]
        self._drawings = weakref.WeakValueDictionary()
        # How the coming batches are drawn, None if they are plain, and whether Keras weights
        # their classes.
        self.expected: tuple[marks.Drawing | None, bool] = (None, False)
        self._in_fit = False
        # Whether there ever was one.
        self.drawn = False

    def adopt(self, drawing: marks.Drawing) -> None:
        """Know of a dataset; its steps are the next, unless in `fit`.

        Args:
            drawing: which lives as long as the dataset.
        """
        self._drawings[id(drawing)] = drawing
        self.drawn = True
        self._model.adapt_batch_normalization()
        if not self._in_fit:
            self._expect(drawing, False)

    @contextlib.contextmanager
    def fitting(self, drawing: marks.Drawing | None, class_weighted: bool) -> Iterator[None]:
        """Within this context all steps are on batches of one dataset.

        Args:
            drawing: None of a plain dataset.
            class_weighted: whether Keras multiplies class weights into its weights.
        """
        self._expect(drawing, class_weighted)
        self._in_fit = True
        try:
            yield
        finally:
            self._in_fit = False

    def refuse_several(self) -> None:
        """Called before steps of which `fit` has not said whose they are.

        Raises:
            ValueError: the model's datasets are drawn in different ways.
        """
        if self._in_fit:
            return
        if self._differ():
            # Datasets that nobody has any more may wait for this.
            gc.collect()
        if self._differ():
            raise ValueError(
                f"model {self._model.name!r} has datasets that are drawn in different ways, and a "
                "batch does not say from which it is. Train on them by fit, or keep one of them "
                "only."
            )
        for drawing in self._drawings.values():
            self._expect(drawing, False)

    def _differ(self) -> bool:
        """Whether two of them are drawn in different ways."""
        drawings = list(self._drawings.values())
        return any(drawing != drawings[0] for drawing in drawings)

    def _expect(self, drawing: marks.Drawing | None, class_weighted: bool) -> None:
        if (drawing, class_weighted) != self.expected:
            self.expected = (drawing, class_weighted)
            self._model.train_function = None
        for name in ("switch", "meter"):
            if drawing is not None and getattr(drawing, name) is not None:
                compat.track(self._model, name, getattr(drawing, name))
