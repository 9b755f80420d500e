"""What schemathesis has to be told; see `test_openapi`."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def as_lines(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """A batch is described as an array."""
    return "\n".join(map(json.dumps, value if isinstance(value, list) else [value])).encode()
