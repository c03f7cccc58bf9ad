"""Rows that tests make up, from the schema that stored rows have."""

from typing import Any, get_args

from msgspec import NODEFAULT, structs

from ssmax_eval.rows import Row, checked, columns

PLAIN = {str: "", int: 0, float: 0.0, bool: False}


def made(schema: type[Row], **told: Any) -> dict[str, Any]:
    """Return a row with what is told, the rest as plain as its schema allows; it is one that a run could have stored."""
    needed = {field.name for field in structs.fields(schema) if field.default is NODEFAULT}
    kinds = {name: kind for name, (kind, _) in columns(schema).items() if name in needed and name not in told}
    row = {name: None if type(None) in get_args(kind) else PLAIN.get(kind, "") for name, kind in kinds.items()}
    checked(row | told, schema)
    return row | told
