"""What pydantic found wrong, in one sentence: key, expected, got, and the nearest known key."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError

Tables = Mapping[str, Sequence[type[BaseModel]]]
_EXPECTED = {"model_type": "a table", "tuple_type": "a list"}  # in words of the file, not of Python
_FOLLOWS = "default_factory_not_called"  # a default that depends on a value which is itself a problem


def explain(error: ValidationError, tables: Tables, *, within: str = "") -> str:
    """Return the first problem in one sentence, and how many more there are.

    An unknown key comes first: misspelt, it is also why another one is missing. A validator's own message begins with
    the key that it is about, or, where it checked one value, with `expected`.

    Args:
        error: what pydantic found.
        tables: the known tables, each with the records that it may be; a table within another is named by both.
        within: the table that was read, where it was not the whole file.
    """
    problems = [problem for problem in error.errors(include_url=False) if problem["type"] != _FOLLOWS]
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    place = [*([within] if within else []), *(str(part) for part in first["loc"])]
    if len(tables.get(place[0], ()) if place else ()) > 1:
        del place[1:2]  # pydantic names the variant: model, cnn, key
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        sentence = f"{key}: unknown key; {_nearest(place, tables)}"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        sentence = f"{key}{': ' if message.startswith('expected') else '.'}{message}" if key else message
    elif first["type"] == "union_tag_invalid":
        name = first["ctx"]["discriminator"].strip("'")
        sentence = f"{key}.{name}: expected {first['ctx']['expected_tags']}, got '{first['ctx']['tag']}'"
    elif first["type"] == "union_tag_not_found":
        sentence = f"{key}.{first['ctx']['discriminator'].strip(chr(39))}: expected a value, got none; add it"
    elif first["type"] == "missing":
        sentence = f"{key}: expected a value, got none; add it"
    else:
        expected = (
            _EXPECTED.get(first["type"]) or first["msg"].replace("Input should be ", "").replace("Input", "").strip()
        )
        sentence = f"{key}: expected {expected}, got {first['input']!r}"
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    return f"{sentence}.{more}"


def _nearest(place: list[str], tables: Tables) -> str:
    if len(place) == 1:
        known = [name for name in tables if "." not in name]
    else:
        inner = ".".join(part for part in place[:-1] if not part.isdecimal())  # without places in a list
        known = sorted({name for table in tables.get(inner, ()) for name in table.model_fields})
    close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    prefix = ".".join(place[:-1])
    if close:
        return f"did you mean {prefix + '.' if prefix else ''}{close[0]}"
    return f"known keys are {', '.join(known)}"
