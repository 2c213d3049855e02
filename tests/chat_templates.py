"""Chat templates in the manner of the families that Kaoken bakes, chats for them, and a tiny model that chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from checkpoints import TOKENIZER, write_checkpoint, write_json

START, END = 257, 258  # <|im_start|> and <|im_end|>, behind the bytes and <|endoftext|>
POSITIONS = 256

# The tokens that these templates name.
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}

CHATML = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nBe brief.<|im_end|>' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant' }}
{% endif %}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and message.content is string
        and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

SMOLLM3 = """\
{# the system's part names the day #}
{%- macro part(role, text) %}{{ '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}{% endmacro %}
{%- set mode = '/think' if enable_thinking | default(true) else '/no_think' %}
{%- set said = messages[0]['content'] if messages[0].role == 'system' else '' %}
{%- if '/no_think' in said %}
    {%- set mode = '/no_think' %}
    {%- set said = said.replace('/no_think', '') | trim %}
{%- endif %}
{{- part('system', 'Today: ' ~ strftime_now('%d %B %Y') ~ '\\nReasoning Mode: ' ~ mode ~ '\\n' ~ said) }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ part('assistant', message.content | trim) }}{% endgeneration %}
    {%- else %}
        {{- part(message.role, message.content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' ~ 'Today Date: ' ~ date_string ~ '\\n\\n' }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- system_message ~ '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- message.tool_calls[0].function.arguments | tojson ~ '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- set data = message.content is mapping or message.content is iterable %}
        {{- message.content | tojson if data else message.content }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] in ("tool", "tool_results") %}{% continue %}{% endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.role == "assistant" and message.content is defined %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " ~ message.role) }}
    {%- endif %}
    {%- if loop.index > 90 %}{% break %}{% endif %}
{%- endfor %}
{{- "" if user_messages else raise_exception("no user message") }}
"""

GRANITE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') + "." %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if documents %}
    {{- '<|start_of_role|>documents<|end_of_role|>' }}
    {%- for document in documents %}
        {{- 'Document ' + loop.index | string + '\\n' + document['text'] }}
        {%- if not loop.last %}{{- '\\n\\n' }}{% endif %}
    {%- endfor %}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + (message['content'] or '') + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson() }}{% endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "smollm3": SMOLLM3,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "granite": GRANITE,
    "zephyr": ZEPHYR,
}


def said(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """A chat: the user's content first, then the assistant's, and so on."""
    front = [] if system is None else [{"role": "system", "content": system}]
    return front + [
        {"role": "assistant" if at % 2 else "user", "content": content} for at, content in enumerate(contents)
    ]


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says "how" it is <outside> & when',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Zürich & <Bern>"}}}

# Messages and what else a template is given.
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": (said("Why is the sky blue?"), {"add_generation_prompt": True}),
    "turns": (said("Hi", " Hello! \n", "And <b>now</b> & 'then'? 🙂"), {"add_generation_prompt": True}),
    "system": (said("Hi", system="You are a crow. /no_think"), {"add_generation_prompt": True}),
    "finished": (said("Hi", "Hello!"), {}),
    "no_thinking": (said("Hi", "<think>\nhm\n</think>\n\nHo", "?"), {"enable_thinking": False}),
    "reasoning": ([*said("Hi"), {"role": "assistant", "content": "Ho", "thinking": "hm", "tool_calls": None}], {}),
    "tools": (
        [
            *said("Weather?", system="Use tools."),
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": '{"sun": true}'},
        ],
        {"tools": [TOOL], "add_generation_prompt": True},
    ),
    "documents": (said("Hi"), {"documents": [{"title": "a", "text": "One."}, {"title": "b", "text": "Two."}]}),
    "variables": (said("Hi"), {"date_string": "1 Jan 1970", "controls": {"length": "long"}, "bos_token": "<s>"}),
    "two_users": ([*said("Hi"), *said("again")], {}),
}


def write_chat_model(directory: Path, template: str = CHATML) -> Path:
    """A tiny GPT-2 of bytes with a chat template; its config knows nothing of the end of a turn."""
    fields = {"vocab_size": 259, "n_positions": POSITIONS, "eos_token_id": 256, "bos_token_id": 256}
    write_checkpoint(directory, fields)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {**SPECIAL, "chat_template": template})
    return directory
