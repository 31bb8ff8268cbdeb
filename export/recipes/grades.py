"""How answers are judged: the graders' options, and the `grade:` of a recipe's data, which names one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, create_model, model_validator

from bakeout.models.methods.options import Section, Share


class ExactOptions(Section):
    """The answer is the row's response, surrounding whitespace aside."""


class ContainsOptions(Section):
    """The answer holds the row's response, or one of its `answers`, as whole words."""

    case: bool = Field(False, description="Whether capitals and small letters differ.")


class NumberOptions(Section):
    """The answer gives the number that the row's response gives (GSM8K).

    Thousands separators, decimals, currencies and percent signs are read: `$1,234.50` is 1234.5, and `50%` is 50 or
    0.5.
    """

    mark: str = Field(
        "####",
        min_length=1,
        description="Where a text has this mark, the number that follows its last one counts; else the text's last "
        "number.",
    )


class ChoiceOptions(Section):
    """The model gives the right one of the row's `choices` the highest likelihood (MMLU); nothing is generated.

    The right one is the row's `answer` (an index, a letter or the choice itself) or else its response.
    """

    by: Literal["text", "letter"] = Field(
        "text",
        description="`text`: of each choice's own text, per token; `letter`: the choices are listed behind the "
        "question, and their letters are compared.",
    )


class RougeOptions(Section):
    """The ROUGE-L recall of the row's response (TOFU): its longest common subsequence of words with the answer."""

    threshold: Share = Field(0.5, description="The recall from which an answer counts as right.")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return text


class RegexOptions(Section):
    """The answer matches a regular expression somewhere."""

    pattern: Annotated[str, AfterValidator(_pattern)] = Field(
        description="Python's syntax; `(?i)` at its beginning ignores case. `{response}` stands for the row's response."
    )


class PythonOptions(Section):
    """The answer is Python code that passes the row's `tests` (MBPP's `test_list`). *What a model writes runs.*

    Each answer runs in a process of its own without network, with bounds on time and memory, in a directory that is
    thrown away; the kernel (Linux) must allow that.
    """

    timeout: PositiveFloat = Field(10.0, description="Seconds that the code and its tests may take.")
    memory: PositiveInt = Field(512, description="MiB of memory that they may take.")
    show_tests: Annotated[int, Field(ge=0)] = Field(
        0,
        description="How many of the tests are shown behind the question: MBPP's questions do not say what the "
        "function is called.",
    )
    unisolated: bool = Field(
        False, description="Run the code where it cannot be cut off from the network and this machine's files, too."
    )


class LikelihoodOptions(Section):
    """The log-probability per token of the row's response, and its ratio to the base model's; nothing is generated.

    An answer counts as right where each of its tokens is the most probable one.
    """


GRADES: Mapping[str, type[Section]] = {
    "exact": ExactOptions,
    "contains": ContainsOptions,
    "number": NumberOptions,
    "choice": ChoiceOptions,
    "rouge": RougeOptions,
    "regex": RegexOptions,
    "python": PythonOptions,
    "likelihood": LikelihoodOptions,
}


class _Grade(Section):
    """How a name's answers are judged: a single key, the grader, with its options. The name alone does as well."""

    @model_validator(mode="after")
    def _one_grader(self) -> _Grade:
        if len(self.model_fields_set) != 1:
            named = " and ".join(sorted(self.model_fields_set))
            raise ValueError(f"it names one grader, not {named or 'none'}")
        return self

    @property
    def name(self) -> str:
        """The grader that is named."""
        (name,) = self.model_fields_set
        return name

    @property
    def options(self) -> Section:
        """That grader's options."""
        options: Section = getattr(self, self.name)
        return options

    def as_json(self) -> dict[str, Any]:
        """The grader with all of its options."""
        return {self.name: self.options.model_dump(mode="json")}


def _keyed(value: Any) -> Any:
    """A grader's name as the key that it stands for."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping):
        return {name: {} if options is None else options for name, options in value.items()}
    return value


def _or_name(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"enum": list(GRADES)}, *schema["anyOf"]]


def _grade_type() -> type[_Grade]:
    fields: dict[str, Any] = {
        name: (options | None, Field(None, description=" ".join((options.__doc__ or "").split("\n\n")[0].split())))
        for name, options in GRADES.items()
    }
    one_key: Any = {"json_schema_extra": {"minProperties": 1, "maxProperties": 1}}
    return create_model("Grade", __base__=_Grade, __doc__=_Grade.__doc__, __cls_kwargs__=one_key, **fields)


if TYPE_CHECKING:
    Grade = _Grade
else:
    Grade = _grade_type()

# A grader's name, or a mapping of it to its options; None for `exact`.
GradeEntry = Annotated[Grade | None, BeforeValidator(_keyed)]
EXACT = Grade.model_validate({"exact": {}})


def as_grade(value: Any) -> Grade:
    """A grade as recipes write it: ``"number"``, or ``{"number": {"mark": "answer:"}}``. Raises ``ValidationError``."""
    return Grade.model_validate(_keyed(value))


def grade_field() -> Any:
    """The field `grade` of a name's data."""
    return Field(
        None,
        description="How its answers are judged: the name of a grader, or a mapping of it to its options. `exact` "
        "where it is left out.",
        json_schema_extra=_or_name,
    )
