"""Who asks: the account that the `fair` policy keeps of a client."""

from __future__ import annotations

from hashlib import blake2b

DIGEST_BYTES = 8


def tenant_of(key: str, user: str) -> str:
    """A name for a key and, behind it, a user; "" when neither is given. The key cannot be told from it.

    The user is what the request calls `user` or else `prompt_cache_key`, OpenAI's newer name for the same grouping.
    """
    if not key and not user:
        return ""
    # A header holds no NUL, so no two pairs look alike; bytes of it that are not UTF-8 come as surrogates.
    name = f"{key}\0{user}".encode(errors="surrogateescape")
    return blake2b(name, digest_size=DIGEST_BYTES).hexdigest()
