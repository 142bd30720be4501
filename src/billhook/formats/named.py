"""Arrays of checkpoints, refused under the names that users know them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightError


@dataclass(frozen=True, eq=False)
class Named:
    """An array, and what messages call it.

    Args:
        name: Its name, such as `qweight`, with its file where it comes from one.
        values: The array.
    """

    name: str
    values: npt.NDArray[Any]

    def refuse(self, wrong: npt.NDArray[np.bool_], rule: str) -> None:
        """Refuse the array if any of its values is wrong.

        Args:
            wrong: Which values are wrong.
            rule: What they must be, in words.

        Raises:
            WeightError: One is; names the array, the first place and its value.
        """
        if not wrong.any():
            return
        at = tuple(int(index) for index in np.argwhere(wrong)[0])
        place = f" at {list(at)}" if at else ""
        more = f", and {int(wrong.sum()) - 1} more" if wrong.sum() > 1 else ""
        raise WeightError(f"{self.name}: {rule} (got {self.values[at]}{place}{more})")

    def finite(self, what: str = "scales") -> npt.NDArray[Any]:
        """Return the values of floats.

        Args:
            what: What they are, in words.

        Raises:
            WeightError: One is NaN or infinite.
        """
        self.refuse(~np.isfinite(self.values.astype(np.float32)), f"{what} must be finite")
        return self.values

    def words(self, *shape: int) -> npt.NDArray[np.int32]:
        """Return the values of an array of words.

        Raises:
            WeightError: They are not int32, or have another shape.
        """
        if self.values.dtype != np.int32 or self.values.shape != shape:
            raise WeightError(
                f"{self.name} must be int32 {shape} (got {self.values.dtype} {self.values.shape})"
            )
        return self.values
