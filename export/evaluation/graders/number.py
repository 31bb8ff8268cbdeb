"""The answer gives the number that the response gives."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, DecimalException

from bakeout.export.evaluation.graders.grader import AnswerGrader, Question, Verdict
from bakeout.export.recipes.grades import NumberOptions
from bakeout.models.data.row_source import DataError

_CURRENCY = "$€£¥₹"
_MINUS = "-\N{MINUS SIGN}"
_SPACES = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}'\N{RIGHT SINGLE QUOTATION MARK}"
# Groups of three digits behind commas, points or spaces, then plain digits. `1.234` alone is a decimal, `1,234` is not.
_DIGITS = (
    r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?!\d)"
    r"|[1-9]\d{0,2}(?:\.\d{3})+,\d+(?!\d)"
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\d)"
    rf"|[1-9]\d{{0,2}}(?:[{_SPACES}]\d{{3}})+(?:[.,]\d+)?(?!\d)"
    r"|\d+(?:[.,]\d+)?|\.\d+"
)
_NUMBER = re.compile(
    # A minus behind a word, a number or a bracket is a hyphen or a subtraction.
    rf"(?:(?<![\w.)\]])(?P<minus>[{_MINUS}])(?=[\d.{_CURRENCY}]))?(?:[{_CURRENCY}]\s?(?P<inner>[{_MINUS}])?)?"
    rf"(?P<digits>{_DIGITS})(?P<exponent>[eE][-+]?\d+)?(?P<percent>\s?(?:%|percent\b))?"
)


@dataclass(frozen=True)
class Quantity:
    """A number in a text, and whether a percent sign stands behind it."""

    value: Decimal
    percent: bool

    def equals(self, other: Quantity) -> bool:
        """Whether both are the same, `50%` being 50 and 0.5: whole numbers exactly, others to a millionth."""
        pairs = [(self.value, other.value)]
        if self.percent != other.percent:
            pairs.append((self.value / 100, other.value) if self.percent else (self.value, other.value / 100))
        return any(_alike(number, expected) for number, expected in pairs)


class Number(AnswerGrader):
    """Compares the number behind the mark, or else the last one, of answer and response."""

    title = "the right number"

    def __init__(self, options: NumberOptions) -> None:
        self._mark = options.mark

    def require(self, question: Question) -> None:
        """Raise ``DataError`` for a response without a number."""
        if final_number(question.response, self._mark) is None:
            raise DataError(f"{question.where}: there is no number in the response.", "Use another grader.")

    def judge(self, answer: str, question: Question) -> Verdict:
        """Right where both numbers are equal."""
        given, expected = final_number(answer, self._mark), final_number(question.response, self._mark)
        return Verdict(given is not None and expected is not None and given.equals(expected))


def final_number(text: str, mark: str) -> Quantity | None:
    """The first number behind the last ``mark`` of a text, or its last number where it has no mark; None for none.

    >>> final_number("He pays $1,234.50 in all.", "####")
    Quantity(value=Decimal('1234.50'), percent=False)
    >>> final_number("4 of 8 is 50%", "####"), final_number("so 3 - 5 = #### -2 apples, not 8", "####")
    (Quantity(value=Decimal('50'), percent=True), Quantity(value=Decimal('-2'), percent=False))
    """
    _, marked, behind = text.rpartition(mark)
    numbers = [quantity for match in _NUMBER.finditer(behind) if (quantity := _quantity(match))]
    if not numbers:
        return None
    return numbers[0] if marked else numbers[-1]


def _quantity(match: re.Match[str]) -> Quantity | None:
    """What a match gives; None for what is beyond all numbers."""
    digits = re.sub(rf"[{_SPACES}]", "", match["digits"])
    commas, points = digits.count(","), digits.count(".")
    if commas and points:
        grouping = "," if digits.rfind(",") < digits.rfind(".") else "."
        digits = digits.replace(grouping, "")
    elif commas > 1 or (commas and re.fullmatch(r"[1-9]\d{0,2},\d{3}", digits)):
        digits = digits.replace(",", "")
    elif points > 1:
        digits = digits.replace(".", "")
    try:
        value = Decimal(digits.replace(",", ".") + (match["exponent"] or ""))
    except DecimalException:
        return None
    if not math.isfinite(value):
        return None
    # A minus sign in front would round to the context's digits.
    is_negative = match["minus"] or match["inner"]
    return Quantity(value.copy_negate() if is_negative else value, match["percent"] is not None)


def _alike(number: Decimal, expected: Decimal) -> bool:
    if all(value == value.to_integral_value() for value in (number, expected)):
        return number == expected
    return math.isclose(number, expected, rel_tol=1e-6)
