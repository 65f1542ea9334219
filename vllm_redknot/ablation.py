"""What results call REDKNOT and, in an ablation, its parts."""

from typing import Final, Literal

Name = Literal["heads", "rows", "redknot"]
HEADS: Final = "heads"
ROWS: Final = "rows"
REDKNOT: Final = "redknot"
LABELS: Final[dict[Name, str]] = {HEADS: "heads", ROWS: "rows", REDKNOT: "both"}
"""In an ablation, where REDKNOT is the one with its head classes and its rows."""
