"""The filters of EC2's Describe actions, on records with AWS's names of fields: `traffic-mirror-filter-id`, `tag:NAME`, `tag-key`.

An unknown filter is refused, as EC2 does.
"""

import fnmatch
from typing import Any

from .corrections import refuse


def select(records: list[dict[str, Any]], filters: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The records that every filter lets through."""
    return [record for record in records if all(matches(record, name, values) for name, values in filters.items())]


def matches(record: dict[str, Any], name: str, values: list[str]) -> bool:
    tags = {tag["Key"]: tag["Value"] for tag in record.get("Tags", [])}
    if name.startswith("tag:"):
        found = [tags[name[4:]]] if name[4:] in tags else []
    elif name == "tag-key":
        found = list(tags)
    else:
        field = "".join(part.capitalize() for part in name.split("-"))
        if field not in record and not field.endswith(("Id", "Description", "Arn", "PacketLength", "State")):
            raise refuse("InvalidParameterValue", f"The filter '{name}' is invalid")
        found = [str(record[field])] if field in record else []
    return any(fnmatch.fnmatchcase(value, pattern) for value in found for pattern in values)
