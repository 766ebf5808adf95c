"""The two ways a fit ends without a persona.

InputError  exit 2: something the user gave breaks a rule; the message says which, and the fix
FitError    exit 1: the input is sound, the fit is not possible or the machine failed
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_SHOWN = 12


class InputError(ValueError):
    """A file or an option the user gave breaks a rule."""


class FitError(RuntimeError):
    """Sound input, but no persona can be made of it on this model or machine."""


def refuse(
    source: str, problems: Sequence[str], advice: str, *, total: int | None = None
) -> InputError:
    """One error for all ``problems`` of ``source``, bounded in length however many there are.

    ``total`` counts them where ``problems`` holds only the first.
    """
    total = len(problems) if total is None else total
    shown = [f"  - {problem[:300]}" for problem in problems[:_MAX_SHOWN]]
    if total > len(shown):
        shown.append(f"  - and {total - len(shown)} more")
    return InputError("\n".join([f"{source}: {total} problem(s)", *shown, advice]))
