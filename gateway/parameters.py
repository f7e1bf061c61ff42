"""Which request parameters exist: those that work are in `gateway.schemas`, the others here with their neutral values.

No parameter is accepted and then ignored. One that this server knows but cannot serve is accepted at a value that asks
for nothing, and refused by name otherwise; so is a name that nobody knows.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from gateway.errors import SHOWN_NAME_CHARS, refuse, shorten

# Parameter -> the values, beside null, that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "custom_logit_processor": (),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "lora_path": (),
    "no_stop_trim": (False,),
    "prompt_cache_retention": (),
    "return_hidden_states": (False,),
    "return_tokens_as_token_ids": (False,),
    "session_id": (),
    "spaces_between_special_tokens": (True,),
    "stop_regex": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": (),
}
UNSUPPORTED_CHAT: dict[str, tuple[Any, ...]] = _UNSUPPORTED | {
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "documents": (),
    "function_call": (),
    "functions": (),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "prediction": (),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
UNSUPPORTED_COMPLETION: dict[str, tuple[Any, ...]] = _UNSUPPORTED | {
    "add_special_tokens": (True,),
    "prompt_embeds": (),
    "suffix": ("",),
}
UNSUPPORTED_TOKENIZE: dict[str, tuple[Any, ...]] = {
    "chat_template": (),
}
UNSUPPORTED_EMBEDDING: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "dimensions": (),
    "truncate_prompt_tokens": (),
}

# Names that other servers had once -> what to do instead.
_GONE = {
    "guided_choice": "use structured_outputs.choice",
    "guided_decoding_backend": "leave it out: there is one backend",
    "guided_grammar": "use structured_outputs.grammar",
    "guided_json": "use structured_outputs.json",
    "guided_regex": "use structured_outputs.regex",
    "guided_whitespace_pattern": "leave it out: JSON has at most one space in each place",
}


def supplied(
    body: Mapping[str, Any], supported: Container[str], unsupported: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """What of a body asks for something: its nulls and neutral values left out.

    Raises ApiError 400 for a parameter that is unknown, or unsupported at its value.
    """
    kept = {}
    for name, value in body.items():
        if name in supported:
            if value is not None:
                kept[name] = value
        elif name in _GONE:
            if value is not None:
                refuse(f"{name}: this parameter is no longer one; {_GONE[name]}", name)
        elif name not in unsupported:
            refuse(f"Unrecognized request argument supplied: {shorten(name, SHOWN_NAME_CHARS)}", name)
        elif value is not None and not _is_one_of(value, unsupported[name]):
            refuse(f"{name}: this server does not support the parameter at this value", name)
    return kept


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    # By type as well: True equals 1, but is no integer here.
    return any(type(value) is type(choice) and value == choice for choice in neutral)
