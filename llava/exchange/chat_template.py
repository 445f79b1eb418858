"""Write a conversation template as the Jinja text that transformers calls a chat template."""

from __future__ import annotations

import json

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import CheckpointError

# Sets `turns` to the messages without a system message, whose text replaces the template's own.
_SYSTEM = """\
{%- set turns = messages -%}
{%- set system = SYSTEM -%}
{%- if messages and messages[0].role == 'system' -%}
  {%- set turns = messages[1:] -%}
  {%- set system = messages[0].content if messages[0].content is string else messages[0].content[0].text -%}
{%- endif -%}
"""
# Images first, each on a line of its own, as LLaVA was trained.
_CONTENT = """\
{%- macro text_of(message) -%}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content if part.type == 'image' -%}{{- IMAGE -}}{%- endfor -%}
    {%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
_PARTS = """\
{{- system + SEPARATOR -}}
{%- for message in turns -%}
  {%- if message.role == 'user' -%}
    {{- HUMAN + GAP + text_of(message) + SEPARATOR -}}
  {%- else -%}
    {{- ASSISTANT + GAP + text_of(message) + AFTER_ANSWER -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ASSISTANT -}}{%- endif -%}
"""
_LLAMA_2 = """\
{%- for message in turns -%}
  {%- if message.role == 'user' -%}
    {{- (SEPARATOR if not loop.first else '') + '[INST] ' -}}
    {%- if loop.first and system -%}{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
    {{- text_of(message) + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + text_of(message) + ' ' + AFTER_ANSWER -}}
  {%- endif -%}
{%- endfor -%}
"""


def make_chat_template(conversation: Conversation) -> str:
    """Return a Jinja chat template that renders messages as the conversation template does.

    Raises:
        CheckpointError: The template is for captions (`plain`), or shows images in a turn of their own.
    """
    style = conversation.sep_style
    if style is SeparatorStyle.PLAIN or "mmtag" in conversation.version:
        raise CheckpointError(
            f"template {conversation.version} is not one of a chat with images; give --conv-mode, such as v1",
            code="no-chat-template",
        )
    has_colon = style in (SeparatorStyle.SINGLE, SeparatorStyle.TWO)
    human, assistant = (role + ":" * has_colon for role in conversation.roles)
    after_answer = (
        conversation.sep if style in (SeparatorStyle.SINGLE, SeparatorStyle.MPT) else conversation.sep2
    )
    constants = {
        "SYSTEM": conversation.system,
        "IMAGE": DEFAULT_IMAGE_TOKEN + "\n",
        "HUMAN": human,
        "ASSISTANT": assistant,
        "GAP": " " * has_colon,
        "SEPARATOR": conversation.sep,
        "AFTER_ANSWER": after_answer,
    }
    settings = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in constants.items())
    body = _LLAMA_2 if style is SeparatorStyle.LLAMA_2 else _PARTS
    return settings + _SYSTEM + _CONTENT + body
