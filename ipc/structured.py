"""What an answer must look like, in the words of `structured_outputs`, as the ring carries it."""

from __future__ import annotations

import json
from typing import Any

from ipc.messages import GrammarPart

ANSWER = "answer"  # the name of the part that is the whole answer
ANY_OBJECT: dict[str, Any] = {"type": "object"}
KINDS = ("json", "regex", "choice", "grammar", "json_object")


def grammar_part(kind: str, value: Any, param: str) -> GrammarPart:
    """The grammar of one of KINDS: a JSON schema, a regular expression, a list of texts, a grammar of Lark's or in
    GBNF, or any JSON object, where `value` does not matter. `param` is the field that it came in."""
    match kind:
        case "json":
            return GrammarPart(ANSWER, "json", json.dumps(value, ensure_ascii=False), param)
        case "json_object":
            return GrammarPart(ANSWER, "json", json.dumps(ANY_OBJECT), param)
        case "regex":
            return GrammarPart(ANSWER, "regex", value, param)
        case "choice":
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
            return GrammarPart(ANSWER, "lark", f"start: {texts}", param)
        case _:
            # GBNF writes rules with "::=", Lark with ":".
            return GrammarPart(ANSWER, "gbnf" if "::=" in value else "lark", value, param)
