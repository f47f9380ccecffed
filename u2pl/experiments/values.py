"""The types that values of `params/` have, and the model that refuses everything else."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Item = TypeVar("Item")


class Mistake(ValueError):
    """What does not fit together in a model: the dotted key below it, what was found there and what was expected."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        super().__init__(f"{key}: {found}, expected {expected}")
        self.key, self.found, self.expected = key, found, expected


# Where a cell's number comes from: a method that was trained, one that had to be built without its authors' code, or
# the paper alone.
Source = Literal["measured", "reconstructed", "quoted"]


def each_once(values: list[Item]) -> list[Item]:
    if doubled := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"each once, not {doubled[0]!r} {values.count(doubled[0])} times")
    return values


def _printable(text: str) -> str:
    """Titles reach terminals, LaTeX, HTML and file formats, which all take control characters for something else."""
    if odd := [character for character in text if not character.isprintable() and character != "\u00a0"]:
        raise ValueError(f"text without {odd[0]!r}")
    if not text.strip():
        raise ValueError("some text")
    return text


def _one_paragraph(text: str) -> str:
    return re.sub(r"[ \t\n]+", " ", text).strip(" ")


Fraction = Annotated[str, Field(pattern=r"^(full|1/[0-9]+)$")]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
Text = Annotated[str, AfterValidator(_printable)]
Caption = Annotated[str, AfterValidator(_one_paragraph), AfterValidator(_printable)]
Percent = Annotated[float, Field(ge=0, le=100)]
Channel = Annotated[float, Field(ge=0, le=255)]
Spread = Annotated[float, Field(gt=0)]
Shrink = Annotated[float, Field(gt=0, le=1)]  # a factor of lengths
Enlarge = Annotated[float, Field(ge=1, le=16)]
Byte = Annotated[int, Field(ge=0, le=255)]
AsTuple = Field(strict=False)  # YAML and JSON have lists
Threads = Annotated[int, Field(le=1024)]  # more than any machine has: a few digits too many
Seconds = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Paths that never leave their folder, and that no shell and no wildcard takes for something else.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
FilePath = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*$")]
ListPath = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})*\.txt$")]


class Strict(BaseModel):
    """Unknown keys are errors, nothing is converted (neither `true` to 1 nor text to a number); immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
