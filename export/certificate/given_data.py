"""What a certificate measures on: the rows that it is given, by roles and names, and what it says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bakeout.export.artifacts.salt import known_salt
from bakeout.export.certificate.measuring import Data
from bakeout.export.certificate.sections.tofu import has_wrong_answers
from bakeout.export.certificate.sections.utility import EVERYDAY_NAME, everyday
from bakeout.export.certificate.tofu_metrics import Part
from bakeout.export.evaluation.evaluate import data_names
from bakeout.export.evaluation.graders.grader import Grader
from bakeout.export.evaluation.grading import EXACT_GRADER
from bakeout.export.recipes.data_files import Columns, in_columns
from bakeout.models.data.row_source import RowsInMemory, Source, source_digest, source_lines
from bakeout.models.errors import BakeoutError
from bakeout.models.plan import Plan
from bakeout.models.plan.hiding import is_hidden, salted

_GIVEN_AS = {"forget": "rows to forget", "retain": "rows to keep", "stranger": "strangers"}
NamedSources = Mapping[str, Source] | Sequence[Path]


@dataclass(frozen=True)
class GivenData:
    """``asked``: the rows to forget, to keep, and strangers; ``fitted``: those that the plan was fitted on.

    ``tofu``: rows of TOFU, by open-unlearning's prefix; some of them are ``asked`` too. With a ``salt`` nobody but its
    holder knows what the names and digests in the certificate are of.
    """

    asked: tuple[Data, ...]
    fitted: tuple[Data, ...]
    tofu: Mapping[Part, Data]
    salt: bytes | None = None

    @classmethod
    def of(
        cls,
        forget: NamedSources,
        retain: NamedSources,
        strangers: NamedSources,
        fitted: NamedSources,
        grades: Mapping[str, Grader],
        real_authors: Path | None,
        world_facts: Path | None,
        columns: Mapping[str, Columns] = MappingProxyType({}),
    ) -> GivenData:
        """Read the names, and no rows but whether TOFU's wrong answers are there, and those with ``columns``.

        Raises ``BakeoutError`` where there is nothing to forget or to keep, and for names that are not clear.
        """
        asked = _asked(forget, retain, strangers, grades, columns)
        # The file of the rows that the plan was fitted on often has the name of the fresh ones' file.
        members = tuple(
            Data(f"{name} (fitted)", "fitted", source, EXACT_GRADER, columns.get(name, {}))
            for name, source in _named(fitted, columns).items()
        )
        given = cls(tuple(asked), members, _parts(asked, real_authors, world_facts))
        _require_own_names(given.all)
        _require_known(columns, [*(item.name for item in asked), *_named(fitted, {})])
        return given

    @property
    def all(self) -> list[Data]:
        """Each once."""
        others = (*self.fitted, *self.tofu.values())
        return [*self.asked, *(item for item in others if item not in self.asked)]

    def require_roles(self, plan: Plan) -> None:
        """Raise ``BakeoutError`` for rows to forget that ``plan`` keeps, and rows to keep that it forgets, by file."""
        for data in self.asked:
            names = plan.known_as(source_digest(data.source))
            forgets = set(names) & set(plan.forgets)
            if names and ((data.role == "forget" and not forgets) or (data.role != "forget" and forgets)):
                raise BakeoutError(
                    f"{data.name} is given as {_GIVEN_AS[data.role]}, and the plan has it as {names[0]}, which it "
                    f"{'forgets' if forgets else 'does not forget'}.",
                    "Give each file in its own role.",
                )

    def hidden_as(self, plan: Plan, salt: Path | None) -> GivenData:
        """The same, named by salted digests where a ``salt`` is given.

        Raises ``BakeoutError`` where ``plan`` does not name what it forgets, and there is no salt.
        """
        if salt is None:
            if is_hidden(plan):
                raise BakeoutError(
                    "The artifact hides what it forgets, and a certificate would name the data.",
                    "Give `salt`, the file of the salt that it was hidden with.",
                )
            return self
        content = known_salt(salt)

        def hide(data: Data) -> Data:
            if data.name == EVERYDAY_NAME:
                return data
            name, bracket, rest = data.name.partition(" (fitted)")
            return replace(data, name=salted(name.encode(), content)[:16] + bracket + rest)

        tofu = {part: hide(data) for part, data in self.tofu.items()}
        return GivenData(tuple(map(hide, self.asked)), tuple(map(hide, self.fitted)), tofu, content)

    def described(self) -> dict[str, dict[str, Any]]:
        """What the certificate says of each file, by its name there."""
        return {data.name: self._entry(data) for data in self.all}

    def _entry(self, data: Data) -> dict[str, Any]:
        digest, grader, columns = source_digest(data.source), dict(data.grader.described), dict(data.columns)
        if self.salt is not None:
            # Options of graders can be words of what is forgotten, and so can keys.
            grader, columns = dict.fromkeys(grader, "hidden"), dict.fromkeys(columns, "hidden")
        return {
            "role": data.role,
            **({"sha256": digest} if self.salt is None else {"salted": salted(digest.encode(), self.salt)}),
            "rows": len(list(source_lines(data.source))),
            "grader": grader,
            **({"columns": columns} if columns else {}),
        }


def _asked(
    forget: NamedSources,
    retain: NamedSources,
    strangers: NamedSources,
    grades: Mapping[str, Grader],
    columns: Mapping[str, Columns],
) -> list[Data]:
    if not forget or not retain:
        raise BakeoutError("A certificate needs rows to forget and rows to keep.", "Give `forget` and `retain`.")
    given = {"forget": forget, "retain": retain, "stranger": strangers}
    by_role = {role: _named(sources, columns) for role, sources in given.items()}
    by_role["stranger"][EVERYDAY_NAME] = everyday(next(iter(by_role["forget"].values())))
    names = [name for sources in by_role.values() for name in sources]
    _require_known(grades, names)
    return [
        Data(name, role, source, grades.get(name, EXACT_GRADER), columns.get(name, {}))  # type: ignore[arg-type]
        for role, sources in by_role.items()
        for name, source in sources.items()
    ]


def _require_known(given: Iterable[str], names: Sequence[str]) -> None:
    if strange := sorted(set(given) - set(names)):
        raise BakeoutError(f"No data are called {strange[0]!r}.", f"There are {', '.join(names)}.")


def _require_own_names(data: Iterable[Data]) -> None:
    """Raise ``BakeoutError`` where two files would have the same name, by which figures and journal know them."""
    names = [item.name for item in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BakeoutError(f"Two files are called {twice[0]!r}.", "Rename one of them.")


def _named(sources: NamedSources, columns: Mapping[str, Columns]) -> dict[str, Source]:
    named = data_names(sources) if sources else {}
    return {name: _renamed(source, columns.get(name)) for name, source in named.items()}


def _renamed(source: Source, columns: Columns | None) -> Source:
    """The rows under the keys that ``columns`` say; a plan and a certificate know them by their file."""
    renamed = in_columns(source, columns)
    if renamed is source or not isinstance(renamed, RowsInMemory):
        return source
    return replace(renamed, file_digest=source_digest(source))


def _parts(data: Sequence[Data], real_authors: Path | None, world_facts: Path | None) -> dict[Part, Data]:
    """The rows of TOFU, by open-unlearning's prefix."""
    parts: dict[Part, Data] = {}
    for item in data:
        if item.role != "stranger" and item.role not in parts and has_wrong_answers(item.source):
            parts["forget" if item.role == "forget" else "retain"] = item
    if real_authors is not None:
        parts["ra"] = Data("real authors", "real authors", _with_wrong_answers(real_authors), EXACT_GRADER)
    if world_facts is not None:
        parts["wf"] = Data("world facts", "world facts", _with_wrong_answers(world_facts), EXACT_GRADER)
    return parts


def _with_wrong_answers(path: Path) -> Path:
    if not has_wrong_answers(path):
        raise BakeoutError(
            f"{path} has a row without `perturbed_answer`, which TOFU's metrics need.", "Give every row one."
        )
    return path
