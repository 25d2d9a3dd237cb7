"""Choose, for one person, the series of each session and contrast; ask where no safe rule decides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pflsynth.config import CONTRASTS
from pflsynth.dicom.rules import SKIP, Rule, RuleTable
from pflsynth.dicom.series import Series


@dataclass(frozen=True)
class Session:
    """One study of a person, of which some series are wanted.

    Attributes:
        name: "sub-001", or "sub-001_ses-01" if the person has several.
        chosen: series of each contrast, in the order of ``CONTRASTS``.
    """

    name: str
    chosen: dict[str, Series]


@dataclass(frozen=True)
class Choice:
    """What is made of a person's series.

    Attributes:
        sessions: in the order of time.
        notes: series passed over and why, and choices that were made.
        problems: what keeps the person from being converted, one sentence each.
    """

    sessions: tuple[Session, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def choose_series(subject: str, series: Sequence[Series], table: RuleTable, site: str) -> Choice:
    """Find the series of each contrast of a person.

    Among several of one contrast and session, those found by a rule of the user's own file go before those of the
    shipped rules. Series that repeat one another (same texts, plane, times) are one scan that was done again: the
    one with the most images is taken, of equal ones the last. Anything else is a problem that asks for a rule.

    Args:
        subject: "sub-001".
        series: all of the person, of all studies.
        table: the rules.
        site: named in problems.
    """
    where = f"site {site}, subject {subject}"
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        studies[one.first.study].append(one)
    ordered = sorted(studies.values(), key=lambda study: (min(one.first.study_time for one in study), _uid(study)))
    notes: list[str] = []
    problems = _people_problems(series, where)
    wanted = [found for study in ordered if (found := _wanted(study, table, where, notes))]
    sessions = []
    for number, found in enumerate(wanted, start=1):
        name = subject if len(wanted) == 1 else f"{subject}_ses-{number:02d}"
        chosen = {}
        for contrast in [contrast for contrast in CONTRASTS if contrast in found]:
            place = f"site {site}, subject {name}, contrast {contrast}"
            result = _choose(found[contrast], place, notes)
            problem = result if isinstance(result, str) else result.problem()
            if isinstance(result, Series):
                chosen[contrast] = result
            if problem is not None:
                problems.append(f"{place}: {problem if isinstance(result, str) else f'{result.told()}: {problem}'}")
        sessions.append(Session(name, chosen))
    if not wanted:
        notes.append(f"{where}: no series of a wanted contrast, so it is left out")
    return Choice(tuple(sessions), tuple(notes), tuple(problems))


def _wanted(
    study: Sequence[Series], table: RuleTable, where: str, notes: list[str]
) -> dict[str, list[tuple[Rule, Series]]]:
    """Series of each contrast of a study, each with the rule that found it."""
    found: dict[str, list[tuple[Rule, Series]]] = defaultdict(list)
    for one in study:
        rule = table.find(one)
        if rule is None:
            notes.append(f"{where}: {one.told()} passed over: no rule fits it")
        elif rule.contrast == SKIP:
            notes.append(f'{where}: {one.told()} passed over by the rule "{rule.name}"')
        elif len(one.orientations) > 1:
            notes.append(f"{where}: {one.told()} passed over: its images have {len(one.orientations)} orientations")
        else:
            found[rule.contrast].append((rule, one))
    return found


def _choose(found: Sequence[tuple[Rule, Series]], place: str, notes: list[str]) -> Series | str:
    """The series to take, or the question which one it is."""
    own = [one for rule, one in found if rule.own]
    candidates = own or [one for _, one in found]
    if len({one.likeness for one in candidates}) > 1:
        rules = sorted({f'"{rule.name}"' for rule, one in found if one in candidates})
        return (
            f"which of these series is it: {'; '.join(one.told() for one in candidates)}? (found by the "
            f"rule{'s' if len(rules) > 1 else ''} {', '.join(rules)}); give the one its own rule, or skip the others "
            "by a rule, in a file given as --dicom-rules"
        )
    taken = max(
        candidates, key=lambda one: (one.count, one.first.series_number or 0, one.first.series_time, _uid([one]))
    )
    others = [one for _, one in found if one is not taken]
    if others:
        reason = "an own rule" if own and len(own) < len(found) else "the most images, then the last"
        notes.append(f"{place}: {taken.told()} taken ({reason}), not {'; '.join(one.told() for one in others)}")
    return taken


def _people_problems(series: Sequence[Series], where: str) -> list[str]:
    people = [{one.first.person[part] for one in series} - {""} for part in (0, 1)]
    if any(len(values) > 1 for values in people):
        return [
            f"{where}: its series tell of different birth dates or sexes, so one PatientID is used for several people; "
            "give each person an own PatientID"
        ]
    return []


def _uid(study: Sequence[Series]) -> str:
    return study[0].first.study + study[0].first.series
