"""The request body of SGLang's /generate: names, types and ranges of the fields that work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.schema import Schema
from gateway.schemas import MAX_CHOICES, MAX_LOGPROBS, RequestId, StopStrings, TokenId
from gateway.structure_schemas import GrammarText, Regex

# Known fields that do not work here -> the values, beside null, that ask for nothing.
UNSUPPORTED = {
    "token_ids_logprob": (),
    "lora_path": (),
    "image_data": (),
    "audio_data": (),
    "video_data": (),
    "input_embeds": (),
    "session_params": (),
    "return_hidden_states": (False,),
    "custom_logit_processor": (),
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
}
UNSUPPORTED_SAMPLING = {
    "structural_tag": (),
    "stop_regex": (),
    "spaces_between_special_tokens": (True,),
    "custom_params": (),
}


class SamplingParams(Schema):
    max_new_tokens: Annotated[int, Field(ge=0)] = 128  # 0 reads the prompt and says nothing
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    stop: StopStrings = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    sampling_seed: int | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] = Field(default_factory=dict)
    json_schema: str | None = None  # the text of one
    regex: Regex | None = None
    ebnf: GrammarText | None = None


class GenerateBody(Schema):
    """POST /generate"""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: SamplingParams = Field(default_factory=SamplingParams)
    stream: bool = False
    return_logprob: bool = False  # of the tokens of the output, and, with the next one, of the prompt
    logprob_start_len: Annotated[int, Field(ge=-1)] = -1  # the prompt's from this position on; -1 is none of them
    top_logprobs_num: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0  # most likely candidates beside each token
    return_text_in_logprobs: bool = False
    rid: RequestId | None = None
    priority: int | None = None

    @property
    def shows_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are wanted."""
        return self.return_logprob and self.logprob_start_len >= 0
